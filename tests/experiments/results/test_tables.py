"""The page of tables from what trainings left."""

import math
from pathlib import Path

from experiments.plan import Folder
from experiments.results.spread import Difference
from experiments.results.tables import page, read_sheet, verdict
from tests.helpers.experiment_results import PLAN, leave_result


def test_trainings_that_diverged_are_named_and_in_no_mean(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.settle(PLAN)
    (tmp_path / "build_seconds.json").write_text("{}")
    for seed in (42, 43, 44):
        leave_result(folder, "linear", seed, 4.0 + seed / 100)
        leave_result(folder, "multiplicative", seed, math.nan if seed == 43 else 5.0 + seed / 100)
        leave_result(folder, "no-restart", seed, math.nan)
    found = page(read_sheet(folder))
    assert "Diverged, and in no mean: multiplicative (seed 43); no-restart (seed 42, 43, 44)." in found
    assert "multiplicative epoch decay (2 that did not diverge) | 2 | 5.4300 ± 0.0141 |" in found
    assert "| linear in every epoch | 2 | 4.4300 ± 0.0100 |" in found
    assert "nan" not in found


def test_what_the_teacher_scores_and_what_steps_cost_is_said_where_known(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.settle(PLAN)
    (tmp_path / "build_seconds.json").write_text('{"sparse": 3.2}')
    assert page(read_sheet(folder)) == "No training has finished yet.\n"
    leave_result(folder, "delta", 42, 4.0)
    assert "The teacher itself" not in page(read_sheet(folder))
    folder.teacher_scores.write_text('{"cross_entropy": 3.14159, "calibration_error": 0.01}')
    folder.timing.write_text('{"ce": 0.25}')
    found = page(read_sheet(folder))
    assert "The teacher itself: CE 3.1416, ECE 0.0100." in found
    assert "A step with nothing beside it: ce 250.0 ms." in found
    assert "Caches: sparse 3 s." in found


def test_verdicts_say_what_the_numbers_say() -> None:
    sure, unsure, one = Difference(-0.3, 0.1, 0.1), Difference(0.1, 0.2, 0.1), Difference(0.3, None, None)
    assert verdict({"cross_entropy": sure, "kl": unsure}) == "CE better"
    assert verdict({"cross_entropy": unsure, "kl": Difference(0.3, 0.1, 0.1)}) == "KL worse"
    assert verdict({"agreement": sure, "calibration_error": sure}) == "agreement worse, ECE better"
    assert verdict({"cross_entropy": unsure, "kl": unsure}) == "within the spread"
    assert verdict({"cross_entropy": one, "kl": one}) == "one seed"
