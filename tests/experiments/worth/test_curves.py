"""The picture shows what was trained, and is not written where nothing was."""

from pathlib import Path

from experiments.worth.curves import plot_curves
from experiments.worth.plan import WorthFolder
from tests.helpers.worth_results import write_alone, write_result


def test_curves_over_tokens_and_seconds(tmp_path: Path) -> None:
    folder, picture = WorthFolder(tmp_path), tmp_path / "worth.png"
    assert not plot_curves(folder, picture)
    for seed in (42, 43):
        write_result(folder, "paper", seed, 1.0, (0, 500, 1000))
    write_result(folder, "transformer", 42, 1.0, (0, 500, 1000))
    write_alone(folder, "paper")  # the other has curves over tokens alone
    assert plot_curves(folder, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
