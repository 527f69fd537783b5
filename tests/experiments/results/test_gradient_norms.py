"""Gradient norms are compared where trainings have the same loss."""

from pathlib import Path

import numpy as np
import pytest

from experiments.plan import Folder
from experiments.results.gradient_norms import common_levels, norm_at, norm_tables, smoothed
from student.run.records import Records


def leave_curve(folder: Folder, name: str, seed: int, norm_over_loss: float) -> None:
    """A loss that falls in a line, and a norm in proportion to it."""
    out = folder.run(name, seed)
    out.mkdir(parents=True)
    records = Records(out / "metrics.jsonl")
    for loss in np.linspace(8, 4, 41):
        records.append({"cross_entropy": loss, "gradient_norm": norm_over_loss * loss})


def test_norms_are_taken_at_equal_loss() -> None:
    loss = np.linspace(8, 4, 41)
    curve = smoothed(np.stack([loss, 10 * loss], axis=1), 3)
    assert len(curve) == 39
    slower = np.linspace(9, 5, 41)
    levels = common_levels([curve[:, 0], slower])
    assert levels == pytest.approx([7.175, 6.45, 5.725])
    assert norm_at(curve, levels[1]) == pytest.approx(64.5, abs=1.0)


def test_the_table_has_ratios_to_the_first_and_marks_those_beyond_the_spread(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for seed in (42, 43, 44):
        leave_curve(folder, "delta", seed, 1 + seed / 1000)
        leave_curve(folder, "frobenius", seed, 2 * (1 + seed / 1000))
    results = {name: dict.fromkeys((42, 43, 44)) for name in ("delta", "frobenius", "ce")}
    (table,) = norm_tables(folder, results)
    lines = {line.split(" |")[0]: line for line in table.splitlines()}
    assert lines["| frobenius"].count("| 2.000 *") == 3
    assert lines["| delta"].count("| 1.000 |") == 3
    assert "| ce" not in lines
    assert norm_tables(folder, {"delta": results["delta"]}) == []
