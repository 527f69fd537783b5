"""Trainings as processes: what is done is left alone, what fails is named, what is late is not started."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments.plan import Folder
from experiments.pool import Task, run_tasks, share_of_machine

WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{}')"


class Quick(Task):
    """A process that writes its result at once, or stops without one."""

    def start(self, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        self.out.mkdir(parents=True, exist_ok=True)
        code = {"fails": "raise SystemExit(1)", "forgets": ""}.get(self.variant, WRITE)
        return subprocess.Popen([sys.executable, "-S", "-c", code, str(self.out / "result.json")])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_all_are_carried_out_but_those_that_are_done(folder: Folder) -> None:
    tasks = [Quick(folder, "works", seed) for seed in range(3)]
    tasks[1].out.mkdir(parents=True)
    (tasks[1].out / "result.json").write_text("kept")
    assert run_tasks(tasks, jobs=2) == []
    assert [(task.out / "result.json").read_text() for task in tasks] == ["{}", "kept", "{}"]


def test_those_that_failed_are_named_and_the_others_go_on(folder: Folder) -> None:
    tasks = [Quick(folder, name, 0) for name in ("fails", "forgets", "works")]
    assert run_tasks(tasks, jobs=1) == tasks[:2]
    assert tasks[2].is_done


def test_none_is_started_when_time_is_up(folder: Folder) -> None:
    assert run_tasks([Quick(folder, "works", 0)], jobs=1, seconds=0) == []
    assert not Quick(folder, "works", 0).is_done


def test_processes_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert share_of_machine(3, 8) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [share_of_machine(slot, 32)["CUDA_VISIBLE_DEVICES"] for slot in range(4)] == ["0", "1", "0", "1"]
    assert share_of_machine(0, 32)["OMP_NUM_THREADS"] == "1"
