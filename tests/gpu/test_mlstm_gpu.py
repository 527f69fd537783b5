"""mlstm_kernels' Triton kernels on a GPU against the recurrence in plain torch, values and gradients.

Also a check of the Triton at hand: some releases miscompile kernels like the backward ones on Hopper.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from xlstm.blocks.mlstm.cell import mLSTMCell, mLSTMCellConfig

from student.model.kernels.mlstm import mlstm_sequence

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PAPER = {"batch": 2, "length": 512, "heads": 16, "head_dim": 192}
TOLERANCES = {torch.float32: 5e-3, torch.bfloat16: 2e-2}
"""Norm of the difference over the norm: TF32 products, and what bfloat16 rounds."""

CONTROL_FACTOR = 2.0
"""How much further from float64 the kernels may be than plain torch whose products are TF32 too."""


def _case(
    dtype: torch.dtype, *, batch: int, length: int, heads: int, head_dim: int
) -> tuple[Any, list[Tensor], Tensor]:
    width = heads * head_dim
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cell = mLSTMCell(mLSTMCellConfig(1, width, heads))
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter += 0.02 * torch.randn(parameter.shape)
        *qkv, upstream = torch.randn(4, batch, length, width)
    return cell.to("cuda", dtype), [x.to("cuda", dtype).requires_grad_() for x in qkv], upstream.to("cuda", dtype)


def _results(case: tuple[Any, list[Tensor], Tensor], starts: Tensor | None, kernels: str) -> dict[str, Tensor]:
    """Outputs of the sequence and of the same again from its state, and gradients.

    A gate's weight and bias are one: the bias alone has next to no gradient, its parts cancel.
    """
    cell, qkv, upstream = case
    output, state = mlstm_sequence(cell, *qkv, None, starts, kernels)
    continued, _ = mlstm_sequence(cell, *qkv, tuple(part.detach() for part in state), starts, kernels)
    names = ["q", "k", "v", *dict(cell.named_parameters())]
    gradients = torch.autograd.grad([output, continued], [*qkv, *cell.parameters()], [upstream, upstream])
    found = dict(zip(names, gradients, strict=True))
    for gate in ("igate", "fgate"):
        found[gate] = torch.cat([found.pop(f"{gate}.weight").flatten(), found.pop(f"{gate}.bias")])
    return {"output": output, "continued": continued, **found}


def _errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    with torch.no_grad():
        return {
            name: float((found[name].double() - x.double()).norm() / x.double().norm()) for name, x in expected.items()
        }


def _starts(length: int) -> Tensor:
    starts = torch.zeros(2, length, dtype=torch.bool, device="cuda")
    starts[0, [0, length // 3, length // 2]] = True
    return starts


def _exact(case: tuple[Any, list[Tensor], Tensor], starts: Tensor | None) -> dict[str, Tensor]:
    cell, qkv, upstream = case
    wide = [x.detach().double().requires_grad_() for x in qkv]
    return _results((copy.deepcopy(cell).double(), wide, upstream.double()), starts, "torch")


@contextmanager
def _products_in_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("documents", [False, True])
def test_triton_is_as_near_to_float64_as_plain_torch_in_tf32(documents: bool) -> None:
    """At the paper's size, where sums over 512 positions are long: TF32's error is measured and not guessed.

    Not so in float32, where the forget gates' gradients are off by 0.0066: `auto` does not take the kernels there.
    """
    case = _case(torch.bfloat16, **PAPER)
    starts = _starts(PAPER["length"]) if documents else None
    exact = _exact(case, starts)
    with _products_in_tf32():
        control = _errors(_results(case, starts, "torch"), exact)
    errors = _errors(_results(case, starts, "triton"), exact)
    assert all(errors[name] < CONTROL_FACTOR * control[name] for name in errors), (errors, control)


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 96), (3, 24), (2, 64), (2, 160), (2, 256)])
@pytest.mark.parametrize("length", [7, 100, 200])
def test_every_head_and_length_is_filled_up(length: int, heads: int, head_dim: int) -> None:
    case = _case(torch.float32, batch=2, length=length, heads=heads, head_dim=head_dim)
    errors = _errors(_results(case, _starts(length), "triton"), _results(case, _starts(length), "torch"))
    assert max(errors.values()) < TOLERANCES[torch.float32], errors


def test_plain_torch_on_a_gpu_is_plain_torch_on_a_cpu() -> None:
    cell, qkv, upstream = _case(torch.float64, batch=2, length=200, heads=4, head_dim=24)
    found = _results((cell, qkv, upstream), _starts(200), "torch")
    on_cpu = (cell.cpu(), [x.detach().cpu().requires_grad_() for x in qkv], upstream.cpu())
    expected = _results(on_cpu, _starts(200).cpu(), "torch")
    assert max(_errors({name: x.cpu() for name, x in found.items()}, expected).values()) < 1e-10


def test_auto_takes_triton_where_its_rounding_does_not_show() -> None:
    for dtype, kernels in ((torch.bfloat16, "triton"), (torch.float32, "torch"), (torch.float64, "torch")):
        case = _case(dtype, batch=2, length=128, heads=2, head_dim=64)
        automatic, expected = _results(case, None, "auto"), _results(case, None, kernels)
        assert torch.equal(automatic["output"], expected["output"])
