"""The caches of a comparison are built by the command, of the text that each is for."""

import subprocess
from pathlib import Path

import pytest

from experiments.worth.caches import build_caches
from experiments.worth.plan import WorthFolder
from tests.helpers.worth_results import PLAN


def test_two_caches_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    build_caches(WorthFolder(tmp_path), PLAN)
    train, held_out = commands
    assert {"--corpus.source=corpus/train.parquet", "--rows.count=64", "--teacher.carry=body"} <= set(train)
    assert {"--corpus.source=corpus/held_out.parquet", "--rows.count=4", "--targets.mode=exact"} <= set(held_out)
