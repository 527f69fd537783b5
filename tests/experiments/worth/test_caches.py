"""The caches of a comparison are built by the command, of the text that each is for."""

import subprocess
from pathlib import Path

import pytest
import torch

from experiments.worth.caches import build_caches
from experiments.worth.plan import WorthFolder
from tests.helpers.worth_results import PLAN


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run."""
    found: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: found.append(command))
    return found


def test_what_is_trained_on_and_held_out_rows_are_asked_for(tmp_path: Path, commands: list[list[str]]) -> None:
    build_caches(WorthFolder(tmp_path), PLAN, {"train"})
    train, held_out = commands
    assert {"--corpus.source=corpus/train.parquet", "--rows.count=64", "--teacher.carry=body"} <= set(train)
    assert {"--corpus.source=corpus/held_out.parquet", "--rows.count=4", "--targets.mode=exact"} <= set(held_out)
    build_caches(WorthFolder(tmp_path), PLAN, {"train-exact"})
    assert {"--corpus.source=corpus/train.parquet", "--rows.count=64", "--targets.mode=exact"} <= set(commands[2])
    build_caches(WorthFolder(tmp_path), PLAN, {"train-long"})
    assert {"--rows.count=8", "--rows.seq_len=128", "--compute.batch_size=4", "--teacher.carry=body"} <= set(
        commands[4]
    )


@pytest.mark.parametrize("gpus", [0, 1, 4])
def test_several_gpus_have_a_builder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: list[list[str]], gpus: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    build_caches(WorthFolder(tmp_path), PLAN, {"train"})
    launched = commands[0][1 : commands[0].index("teacher_cache") - 1]
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    assert launched == (several if gpus > 1 else [])
