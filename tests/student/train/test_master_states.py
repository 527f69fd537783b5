"""Float32 parameters and moments by name: what one engine gives up puts another where the first is, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from student.run.student import DTYPES
from student.train.checkpoint import restore_learning_rate
from student.train.engine import backward, deepspeed_config, make_engine
from student.train.master_states import gathered_states, restore_states
from student.train.processes import Processes
from tests.helpers.small_training import small_settings


def engine_of(seed: int, precision: str, stage: int, folder: Path) -> Any:
    settings = small_settings(
        f"--training.precision={precision}", deepspeed={"zero_optimization": {"stage": stage}}, folder=folder
    )
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3)).to(DTYPES[precision])
    return make_engine(module, settings, deepspeed_config(settings, world_size=1, out=folder), lambda step: 0.9**step)


def learn(engine: Any, count: int) -> None:
    dtype = next(engine.module.parameters()).dtype
    for number in range(2 * count):  # two micro-batches per step
        backward(engine, engine(torch.tensor([[1.0, number, 2.0]], dtype=dtype)).float().square().sum())
        engine.step()


@pytest.mark.parametrize(("precision", "stage"), [("fp32", 0), ("bf16", 0), ("bf16", 2)])
def test_another_engine_goes_on_where_the_first_is(
    alone: Processes, tmp_path: Path, precision: str, stage: int
) -> None:
    first, second = (engine_of(seed, precision, stage, tmp_path) for seed in (1, 2))
    assert [name for name, _ in gathered_states(first, updates=0)] == [
        f"parameter/{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")
    ]
    learn(first, 2)
    given = {name: whole.clone() for name, whole in gathered_states(first, updates=2)}
    assert given.keys() >= {"parameter/0.weight", "exp_avg/0.weight", "exp_avg_sq/1.bias"}
    assert {whole.dtype for whole in given.values()} == {torch.float32}
    restore_states(second, given.__getitem__, updates=2)
    restore_learning_rate(second, 2)
    learn(first, 1)
    learn(second, 1)
    ours, theirs = (dict(gathered_states(engine, updates=3)) for engine in (first, second))
    for name, whole in ours.items():
        assert torch.equal(whole, theirs[name]), name
        assert not torch.equal(whole, given[name]), name
