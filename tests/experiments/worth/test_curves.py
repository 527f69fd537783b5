"""The picture shows what was trained, and is not written where nothing was."""

from pathlib import Path

from PIL import Image

from experiments.worth.curves import plot_curves
from experiments.worth.plan import WorthFolder
from experiments.worth.students import HYBRID, TRANSFORMER
from tests.helpers.worth_results import write_alone, write_result


def test_curves_over_tokens_and_seconds(tmp_path: Path) -> None:
    folder, picture = WorthFolder(tmp_path), tmp_path / "worth.png"
    assert not plot_curves(folder, picture)
    for seed in (42, 43):
        write_result(folder, "paper", seed, 1.0, (0, 500, 1000))
    write_result(folder, "transformer", 42, 1.0, (0, 500, 1000))
    assert plot_curves(folder, picture)
    untimed = _width(picture)
    write_alone(folder, "paper")  # the other has curves over tokens alone
    assert plot_curves(folder, picture)
    assert _width(picture) == 2 * untimed
    assert plot_curves(folder, picture, [TRANSFORMER])
    assert _width(picture) == untimed
    assert not plot_curves(folder, picture, [HYBRID])


def _width(picture: Path) -> int:
    with Image.open(picture) as image:
        return image.width
