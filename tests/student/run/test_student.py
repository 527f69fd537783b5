"""A student around a cache: the cache's matrices, the settings' shape, seed and precision."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from delta_common.errors import UserError
from student.run.student import DTYPES, initial_student
from teacher_cache.read.cache import open_cache
from tests.helpers.small_training import VOCAB, WIDTH, small_settings

CPU = torch.device("cpu")


def test_the_frozen_matrices_are_the_caches(uneven_cache: Path) -> None:
    cache = open_cache(uneven_cache)
    student = initial_student(small_settings(), cache, CPU)
    assert torch.equal(student.embedding, load_file(cache.frozen_weights)["embedding.weight"].float())
    assert student.head.weight.shape == (VOCAB, WIDTH)
    assert len(student.stack.blocks) == 2


@pytest.mark.parametrize("precision", DTYPES)
def test_all_of_it_is_in_the_runs_precision(uneven_cache: Path, precision: str) -> None:
    student = initial_student(small_settings("--training.precision", precision), open_cache(uneven_cache), CPU)
    tensors = [*student.parameters(), *student.buffers()]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {DTYPES[precision]}


def test_the_seed_decides_the_weights(uneven_cache: Path) -> None:
    cache = open_cache(uneven_cache)
    one, same, other = (
        initial_student(small_settings("--training.seed", seed), cache, CPU).state_dict() for seed in ("1", "1", "2")
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_a_shape_that_does_not_fit_is_refused(uneven_cache: Path) -> None:
    with pytest.raises(UserError, match=r"--model\.heads 5 does not divide"):
        initial_student(small_settings("--model.heads", "5"), open_cache(uneven_cache), CPU)
