"""The page has means, spreads and differences by seed, and only what was trained."""

from pathlib import Path

from experiments.worth.page import at_mark, page
from experiments.worth.plan import WorthFolder
from experiments.worth.students import PAPER, TRANSFORMER, TRANSPLANT
from tests.helpers.worth_results import write_alone, write_result, write_tasks


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert page(WorthFolder(tmp_path)) == "No training has finished yet.\n"


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    folder = WorthFolder(tmp_path)
    for seed, kl in ((42, 1.0), (43, 1.2)):
        write_result(folder, "paper", seed, kl)
        write_result(folder, "transformer", seed, kl + 0.25)
    write_alone(folder, "paper")
    write_tasks(folder, "paper", 0.5)
    text = page(folder)
    assert "CE / KL at 1 M" in text
    assert "1.100 ± 0.141" in text
    assert "+0.250 ± 0.000" in text
    assert "hybrid" not in text
    assert "| needle-4k | generation | 20 |" in text
    assert "| paper | 1,234 | 50.0 | 1,000 | – | 1.0 |" in text


def test_only_the_students_that_are_named(tmp_path: Path) -> None:
    folder = WorthFolder(tmp_path)
    for name in ("paper", "transformer", "hybrid"):
        write_result(folder, name, 42, 1.0)
        write_alone(folder, name)
        write_tasks(folder, name, 0.5)
    text = page(folder, [PAPER, TRANSFORMER])
    assert PAPER.words in text
    assert "| transformer | 1,234 | 50.0 |" in text
    assert "hybrid" not in text
    assert page(folder, [TRANSPLANT]) == "No training has finished yet.\n"


def test_a_measurement_far_from_a_mark_does_not_stand_for_it() -> None:
    points = [{"tokens": 4 * 10**6}]
    assert at_mark(points, 5e6) is None
    assert at_mark(points, 4.5e6) == points[0]
