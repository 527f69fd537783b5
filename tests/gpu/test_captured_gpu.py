"""Recorded passes of a teacher: what they give, when they are recorded, and what cannot be."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.cuda_graphs import Captured
from teacher_cache.teacher.load import load_teacher
from tests.helpers.tiny_teacher import save_tiny_teacher

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


@torch.inference_mode()
def test_a_replay_gives_what_the_run_gives_and_leaves_earlier_results_alone() -> None:
    weight = torch.randn(64, 64, device="cuda")
    calls = []

    def run(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x.shape)
        return x @ weight, (x @ weight).relu().sum(0)

    captured = Captured(run)
    inputs = [torch.randn(rows, 64, device="cuda") for rows in (8, 8, 8, 3, 8, 3, 3)]
    found = [captured(x) for x in inputs]
    assert len(calls) == 4  # a call and a recording for each of two shapes
    for x, (product, total) in zip(inputs, found, strict=True):
        assert torch.equal(product, x @ weight)
        assert torch.equal(total, (x @ weight).relu().sum(0))


@torch.inference_mode()
def test_what_waits_for_the_gpu_is_called_as_it_is() -> None:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        return (x * float(x.max()),)

    captured = Captured(run)
    for scale in (1.0, 2.0, 3.0):
        x = torch.full((4,), scale, device="cuda")
        assert torch.equal(captured(x)[0], x * scale)


def test_the_first_batch_is_to_the_bit_what_it_would_be_later(tmp_path: Path) -> None:
    model = str(save_tiny_teacher(tmp_path))
    teacher = load_teacher(TeacherSettings(model=model, device="cuda", dtype="bfloat16"))
    tokens = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(0))
    first, recorded, replayed = (teacher.states(tokens, mean=True) for _ in range(3))
    for later in (recorded, replayed):
        assert torch.equal(first.final, later.final)
        assert torch.equal(first.mean, later.mean)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@torch.inference_mode()
def test_work_on_another_device_than_the_current_one_is_recorded_there() -> None:
    weight = torch.randn(64, 64, device="cuda:1")
    calls = []

    def run(x: Tensor) -> tuple[Tensor, ...]:
        calls.append(x.shape)
        return (x @ weight,)

    captured = Captured(run)
    for _ in range(4):
        x = torch.randn(8, 64, device="cuda:1")
        assert torch.equal(captured(x)[0], x @ weight)
    assert len(calls) == 2
    assert torch.cuda.current_device() == 0
