"""xlstm's blocks over a sequence by the fast kernels, with a recurrent state and document starts.

Parameters are those of xlstm's modules, whose own `forward` is the naive twin of this file. Dropout, which the
student's configuration sets to 0, and convolutions of size 0, which it excludes, are left out.

A block is a recurrence, what it reads (norm, projections, convolution, gates) and what is made of its output (norm,
gate, projection, feed-forward). Where a step trains on one shape of batch, torch compiles the latter two.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from student.model.kernels.convolution import ConvolutionState, causal_conv
from student.model.kernels.headwise import normalise_heads, project_heads
from student.model.kernels.mlstm import head_inputs, mlstm_heads
from student.model.kernels.mlstm_torch import HeadInputs
from student.model.kernels.slstm import slstm_sequence

if TYPE_CHECKING:
    from xlstm import xLSTMBlockStack
    from xlstm.blocks.xlstm_block import xLSTMBlock

P = ParamSpec("P")
R = TypeVar("R")

RecurrentState = dict[str, Any]
"""As in xlstm: for each block, the state of its recurrence and of its convolution."""


def run_stack(
    stack: "xLSTMBlockStack",
    x: Tensor,
    state: RecurrentState | None = None,
    document_start: Tensor | None = None,
    checkpoint: Callable[..., Any] | None = None,
    *,
    compiled: bool = False,
) -> tuple[Tensor, RecurrentState]:
    """Outputs (B, T, d) of all blocks and the last norm for inputs (B, T, d), and the state for `stack.step`.

    With `checkpoint`, torch's or one like it, blocks are computed again in the backward pass instead of remembered.
    `compiled` is for passes without a state, which begin from nothing and give none.
    """
    run = partial(run_block, compiled=compiled)
    run = run if checkpoint is None else partial(checkpoint, run)
    before, after = state or {}, {}
    for number, block in enumerate(stack.blocks):
        name = f"block_{number}"
        x, after[name] = run(block, x, before.get(name, {}), document_start)
    return stack.post_blocks_norm(x), after


def run_block(
    block: "xLSTMBlock", x: Tensor, state: RecurrentState, document_start: Tensor | None, *, compiled: bool = False
) -> tuple[Tensor, RecurrentState]:
    """Outputs (B, T, d) of one of xlstm's blocks, and its state; the state is empty before a sequence."""
    run = _run_mlstm if block.config.mlstm is not None else _run_slstm
    return run(_compiled_parts() if compiled else _PARTS, block, x, state, document_start)


class _MLSTMReads(NamedTuple):
    inputs: HeadInputs
    mixed: Tensor
    """What the convolution gives, (B, T, F)."""
    gate: Tensor
    """(B, T, F)"""
    conv_state: ConvolutionState | None


def _run_mlstm(
    parts: "_Parts", block: "xLSTMBlock", x: Tensor, state: RecurrentState, starts: Tensor | None
) -> tuple[Tensor, RecurrentState]:
    read = parts.read_mlstm(block, x, state.get("conv_state"), starts)
    h, memory = mlstm_heads(read.inputs, state.get("mlstm_state"), starts, x.dtype)
    return parts.finish_mlstm(block, x, h, read), {"mlstm_state": memory, "conv_state": read.conv_state}


def _read_mlstm(
    block: "xLSTMBlock", x: Tensor, conv_state: ConvolutionState | None, starts: Tensor | None
) -> _MLSTMReads:
    layer = block.xlstm
    inner, gate = layer.proj_up(block.xlstm_norm(x)).chunk(2, dim=-1)
    mixed, conv_state = causal_conv(layer.conv1d, inner, conv_state, starts)
    mixed = functional.silu(mixed)
    q, k, v = project_heads(layer.q_proj, mixed), project_heads(layer.k_proj, mixed), project_heads(layer.v_proj, inner)
    return _MLSTMReads(head_inputs(layer.mlstm_cell, q, k, v), mixed, gate, conv_state)


def _finish_mlstm(block: "xLSTMBlock", x: Tensor, h: Tensor, read: _MLSTMReads) -> Tensor:
    layer = block.xlstm
    y = normalise_heads(layer.mlstm_cell.outnorm, h).to(x.dtype)
    y = torch.addcmul(y, layer.learnable_skip, read.mixed) * functional.silu(read.gate)
    return _fed_forward(block, x + layer.proj_down(y))


def _run_slstm(
    parts: "_Parts", block: "xLSTMBlock", x: Tensor, state: RecurrentState, starts: Tensor | None
) -> tuple[Tensor, RecurrentState]:
    inputs, conv_state = parts.read_slstm(block, x, state.get("conv_state"), starts)
    y, memory = slstm_sequence(block.xlstm.slstm_cell, inputs, state.get("slstm_state"), starts)
    return parts.finish_slstm(block, x, y), {"slstm_state": memory, "conv_state": conv_state}


def _read_slstm(
    block: "xLSTMBlock", x: Tensor, conv_state: ConvolutionState | None, starts: Tensor | None
) -> tuple[Tensor, ConvolutionState | None]:
    layer, x = block.xlstm, block.xlstm_norm(x)
    mixed, conv_state = causal_conv(layer.conv1d, x, conv_state, starts)
    mixed = functional.silu(mixed)
    # In xlstm the projection named fgate feeds the cell's input gate, and igate its forget gate.
    gates = (layer.fgate, mixed), (layer.igate, mixed), (layer.zgate, x), (layer.ogate, x)
    return torch.cat([project_heads(projection, read) for projection, read in gates], dim=-1), conv_state


def _finish_slstm(block: "xLSTMBlock", x: Tensor, y: Tensor) -> Tensor:
    return _fed_forward(block, x + normalise_heads(block.xlstm.group_norm, y))


def _fed_forward(block: "xLSTMBlock", x: Tensor) -> Tensor:
    return x if block.ffn is None else x + block.ffn(block.ffn_norm(x))


class _Parts(NamedTuple):
    """What surrounds the recurrences."""

    read_mlstm: Callable[..., _MLSTMReads]
    finish_mlstm: Callable[..., Tensor]
    read_slstm: Callable[..., tuple[Tensor, ConvolutionState | None]]
    finish_slstm: Callable[..., Tensor]


_PARTS = _Parts(_read_mlstm, _finish_mlstm, _read_slstm, _finish_slstm)


@cache
def _compiled_parts() -> _Parts:
    """Compiled once for all blocks, when they are needed: importing the compiler takes a second."""
    return _Parts(_compiled(_read_mlstm), _compiled(_finish_mlstm), _compiled(_read_slstm), _compiled(_finish_slstm))


def _compiled(part: Callable[P, R]) -> Callable[P, R]:
    return torch.compile(part, dynamic=False, fullgraph=True)
