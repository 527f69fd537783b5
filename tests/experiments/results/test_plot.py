"""The plot of what accounts of the teacher cost."""

from pathlib import Path

from experiments.plan import Folder
from experiments.results.plot import plot_accounts
from experiments.results.tables import read_sheet
from tests.helpers.experiment_results import PLAN, leave_result


def test_the_plot_is_of_accounts_that_can_be_compared(tmp_path: Path) -> None:
    folder, plot = Folder(tmp_path), tmp_path / "accounts.png"
    folder.settle(PLAN)
    leave_result(folder, "delta", 42, 4.0)
    assert not plot_accounts(read_sheet(folder), plot)
    leave_result(folder, "exact", 42, 3.9)
    assert plot_accounts(read_sheet(folder), plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
