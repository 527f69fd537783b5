"""The frozen matrices as a cache has them, and files that are refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from delta_common.errors import UserError
from student.model.frozen import FrozenHead, FrozenWeights, head_over, read_frozen_weights
from student.model.xlstm import build_student
from tests.helpers.small_students import PADDED, VOCAB, WIDTH, small_shape


def _read(path: Path) -> FrozenWeights:
    return read_frozen_weights(path, padded_vocab_size=PADDED, vocab_size=VOCAB, hidden_size=WIDTH)


def test_frozen_weights_are_read_in_float32(tmp_path: Path) -> None:
    embedding, head, bias = torch.randn(PADDED, WIDTH), torch.randn(PADDED, WIDTH), torch.randn(PADDED)
    save_file({"embedding.weight": embedding.bfloat16()}, tmp_path / "tied.safetensors")
    tied = _read(tmp_path / "tied.safetensors")
    assert torch.equal(tied.embedding, embedding.bfloat16().float())
    assert (tied.lm_head, tied.lm_head_bias) == (None, None)
    tensors = {"embedding.weight": embedding, "lm_head.weight": head, "lm_head.bias": bias}
    save_file(tensors, tmp_path / "all.safetensors")
    student = build_student(small_shape(), _read(tmp_path / "all.safetensors"), context_length=4, seed=0)
    assert student.head.vocab_size == VOCAB
    assert torch.equal(student.head.weight[:VOCAB], head[:VOCAB])
    assert student.head.bias is not None
    assert torch.equal(student.head.bias[:VOCAB], bias[:VOCAB])
    counts = student.parameter_counts()
    assert counts.total - counts.trainable == 2 * PADDED * WIDTH + PADDED


@pytest.mark.parametrize(
    ("vocab_size", "available", "rows"),
    [(151_665, 151_936, 151_680), (50_257, 50_257, 50_304), (100, 104, 104), (100, 101, 128), (64, 64, 64), (4, 8, 8)],
)
def test_a_heads_rows_are_such_that_products_are_fast(vocab_size: int, available: int, rows: int) -> None:
    weight, bias = torch.randn(available, 2), torch.randn(available)
    head = head_over(weight, bias, vocab_size)
    assert head.bias is not None
    assert (len(head.weight), len(head.bias), head.vocab_size) == (rows, rows, vocab_size)
    assert torch.equal(head.weight[:vocab_size], weight[:vocab_size])
    assert (head.weight.data_ptr() == weight.data_ptr()) == (available >= rows)


def test_rows_that_are_lacking_are_copied_once() -> None:
    weight, twin = torch.randn(2, 9, 2)
    first, second = head_over(weight, None, 9).weight, head_over(weight, None, 9).weight
    assert first is second or first.data_ptr() == second.data_ptr()
    assert not first[9:].any()
    weight.copy_(twin)
    assert torch.equal(head_over(weight, None, 9).weight[:9], twin)


def test_rows_that_are_lacking_leave_the_gradient_of_a_trained_head() -> None:
    weight, states = torch.randn(9, 4, requires_grad=True), torch.randn(3, 4)
    found, expected = head_over(weight, None, 9).logits(states), states @ weight.T
    assert torch.allclose(found, expected)
    upstream = torch.randn(3, 9)
    assert torch.allclose(*(torch.autograd.grad(y, weight, upstream)[0] for y in (found, expected)))


def test_logits_into_memory_leave_zeros_for_padding() -> None:
    head = FrozenHead(torch.randn(16, 4), torch.randn(16), 9)
    states, workspace = torch.randn(3, 4), torch.full((3, 16), torch.nan)
    assert torch.allclose(head.logits_into(workspace, states), head.logits(states))
    assert not workspace[:, 9:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_frozen_weights_get_the_dtype_of_the_run_as_float32_would(tmp_path: Path, dtype: torch.dtype) -> None:
    for stored in (torch.bfloat16, torch.float32):
        save_file({"embedding.weight": torch.randn(PADDED, WIDTH).to(stored)}, tmp_path / "frozen.safetensors")
        sizes = {"padded_vocab_size": PADDED, "vocab_size": VOCAB, "hidden_size": WIDTH}
        found = read_frozen_weights(tmp_path / "frozen.safetensors", **sizes, dtype=dtype)
        assert found.embedding.dtype == dtype
        assert torch.equal(found.embedding, _read(tmp_path / "frozen.safetensors").embedding.to(dtype))


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"embedding.weight": torch.zeros(PADDED, 8)}, r"embedding.weight has shape \(48, 8\)"),
        ({"lm_head.weight": torch.zeros(PADDED, WIDTH)}, "embedding.weight is missing"),
        ({"other": torch.zeros(1)}, "other has shape"),
    ],
)
def test_frozen_weights_that_do_not_fit_the_cache_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    save_file(tensors, tmp_path / "frozen.safetensors")
    with pytest.raises(UserError, match=words):
        _read(tmp_path / "frozen.safetensors")


def test_damaged_or_missing_frozen_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    for name in ("damaged", "missing"):
        with pytest.raises(UserError, match=f"{name}.safetensors: the teacher's frozen weights are not readable"):
            _read(tmp_path / f"{name}.safetensors")
