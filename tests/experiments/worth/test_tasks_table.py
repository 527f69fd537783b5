"""A column for each student that was measured, beside its teacher."""

from pathlib import Path

from experiments.worth.plan import WorthFolder
from experiments.worth.tasks_table import tasks_tables
from tests.helpers.worth_results import write_tasks


def test_nothing_is_said_of_no_tasks(tmp_path: Path) -> None:
    assert tasks_tables(WorthFolder(tmp_path)) == []


def test_students_stand_beside_their_teacher(tmp_path: Path) -> None:
    folder = WorthFolder(tmp_path)
    write_tasks(folder, "hybrid", 0.5)
    write_tasks(folder, "paper", 0.25)
    tasks, writing = tasks_tables(folder)
    assert "| task | by | examples | the teacher | paper | hybrid |\n| --- | --- | ---: | ---: | ---: | ---: |" in tasks
    assert "| needle-4k | generation | 20 | 100% | 25% (15%–35%) | 50% (40%–60%) |" in tasks
    assert "| hybrid | drawn | 25.8 (20.0–30.0) | 100% |" in writing
    assert writing.count("| the text itself | – | 9.0 (8.0–10.0) | 100% |") == 1
