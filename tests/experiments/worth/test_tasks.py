"""A run's tasks are measured by `student-eval` of this tree, and only scores are kept."""

from pathlib import Path

import pytest

from experiments.worth.tasks import measure_tasks
from tests.helpers import ROOT
from tests.helpers.made_exports import make_export


def test_a_run_is_measured(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_export(tmp_path, tiny_teacher)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    found = measure_tasks(made / "run", tmp_path / "not read for sums", "arithmetic")
    assert [(each["task"], each["measure"]) for each in found["tasks"]] == [
        ("arithmetic", "likelihood"),
        ("arithmetic", "generation"),
    ]
    assert all(0 <= each["student"]["value"] <= 1 for each in found["tasks"])
    assert not any("by_example" in name for each in found["tasks"] for name in each)
    assert found["writing"] == []
