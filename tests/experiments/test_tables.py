"""The page of tables from what trainings left."""

import json
import math
from pathlib import Path

from experiments.plan import Folder, Plan
from experiments.results.plot import plot_accounts
from experiments.results.tables import page, read_sheet

PLAN = Plan("teacher", None, 8, rows=8, held_out=4, epochs=1, batch=4, options=())


def leave_result(folder: Folder, variant: str, seed: int, cross_entropy: float) -> None:
    out = folder.run(variant, seed)
    out.mkdir(parents=True)
    figures = dict.fromkeys(("kl", "agreement", "calibration_error", "gradient_norm", "seconds"), cross_entropy)
    sizes = {"variant": variant, "seed": seed, "steps": 2, "device": "a device", "torch": "2"}
    (out / "result.json").write_text(json.dumps({**sizes, "cross_entropy": cross_entropy, **figures}))


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


def test_the_plot_is_of_accounts_that_can_be_compared(tmp_path: Path) -> None:
    folder, plot = Folder(tmp_path), tmp_path / "accounts.png"
    folder.settle(PLAN)
    leave_result(folder, "delta", 42, 4.0)
    assert not plot_accounts(read_sheet(folder), plot)
    leave_result(folder, "exact", 42, 3.9)
    assert plot_accounts(read_sheet(folder), plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
