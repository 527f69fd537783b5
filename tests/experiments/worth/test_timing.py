"""A student's time is that of its later steps, and is measured once."""

import json
import subprocess
from pathlib import Path

import pytest

from experiments.worth.plan import WorthFolder
from experiments.worth.students import TRANSPLANT
from experiments.worth.timing import Timing
from experiments.worth.training import Training
from tests.helpers.worth_results import PLAN


def test_first_steps_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True)
        costs = [{"seconds": 9.0 if step < 16 else 0.5, "tokens": 100, "mfu": None} for step in range(48)]
        lines = [json.dumps(each | {"peak_bytes": 5, "machine": "a machine"}) for each in costs]
        (out / "costs.jsonl").write_text("\n".join(lines))

    monkeypatch.setattr(subprocess, "run", run)
    folder = WorthFolder(tmp_path)
    timing = Timing(Training(folder, PLAN, TRANSPLANT, 42))
    assert not timing.is_done
    timing.carry_out()
    assert timing.is_done
    assert "--stages=[]" in commands[0]
    found = folder.alone()["transplant"]
    assert (found["seconds"], found["tokens_per_second"]) == (0.5, 200.0)
