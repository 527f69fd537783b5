"""xlstm's blocks over a sequence by the fast kernels, with a recurrent state and document starts.

Parameters are those of xlstm's modules, whose own `forward` is the naive twin of this file. Dropout, which the
student's configuration sets to 0, and convolutions of size 0, which it excludes, are left out.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from student.model.kernels.convolution import causal_conv
from student.model.kernels.headwise import normalise_heads, project_heads
from student.model.kernels.mlstm import mlstm_sequence
from student.model.kernels.slstm import slstm_sequence

if TYPE_CHECKING:
    from xlstm import xLSTMBlockStack
    from xlstm.blocks.mlstm.layer import mLSTMLayer
    from xlstm.blocks.slstm.layer import sLSTMLayer
    from xlstm.blocks.xlstm_block import xLSTMBlock

RecurrentState = dict[str, Any]
"""As in xlstm: for each block, the state of its recurrence and of its convolution."""


def run_stack(
    stack: "xLSTMBlockStack",
    x: Tensor,
    state: RecurrentState | None = None,
    document_start: Tensor | None = None,
    checkpoint: Callable[..., Any] | None = None,
) -> tuple[Tensor, RecurrentState]:
    """Outputs (B, T, d) of all blocks and the last norm for inputs (B, T, d), and the state for `stack.step`.

    With `checkpoint`, torch's or one like it, blocks are computed again in the backward pass instead of remembered.
    """
    run = run_block if checkpoint is None else partial(checkpoint, run_block)
    before, after = state or {}, {}
    for number, block in enumerate(stack.blocks):
        name = f"block_{number}"
        x, after[name] = run(block, x, before.get(name, {}), document_start)
    return stack.post_blocks_norm(x), after


def run_block(
    block: "xLSTMBlock", x: Tensor, state: RecurrentState, document_start: Tensor | None
) -> tuple[Tensor, RecurrentState]:
    """Outputs (B, T, d) of one of xlstm's blocks, and its state; the state is empty before a sequence."""
    run_layer = _run_mlstm if block.config.mlstm is not None else _run_slstm
    y, state = run_layer(block.xlstm, block.xlstm_norm(x), state, document_start)
    x = x + y
    if block.ffn is not None:
        x = x + block.ffn(block.ffn_norm(x))
    return x, state


def _run_mlstm(
    layer: "mLSTMLayer", x: Tensor, state: RecurrentState, document_start: Tensor | None
) -> tuple[Tensor, RecurrentState]:
    inner, gate = layer.proj_up(x).chunk(2, dim=-1)
    mixed, conv_state = causal_conv(layer.conv1d, inner, state.get("conv_state"), document_start)
    mixed = functional.silu(mixed)
    q, k, v = project_heads(layer.q_proj, mixed), project_heads(layer.k_proj, mixed), project_heads(layer.v_proj, inner)
    y, memory = mlstm_sequence(layer.mlstm_cell, q, k, v, state.get("mlstm_state"), document_start)
    y = torch.addcmul(y, layer.learnable_skip, mixed) * functional.silu(gate)
    return layer.proj_down(y), {"mlstm_state": memory, "conv_state": conv_state}


def _run_slstm(
    layer: "sLSTMLayer", x: Tensor, state: RecurrentState, document_start: Tensor | None
) -> tuple[Tensor, RecurrentState]:
    mixed, conv_state = causal_conv(layer.conv1d, x, state.get("conv_state"), document_start)
    mixed = functional.silu(mixed)
    # In xlstm the projection named fgate feeds the cell's input gate, and igate its forget gate.
    gates = (layer.fgate, mixed), (layer.igate, mixed), (layer.zgate, x), (layer.ogate, x)
    inputs = torch.cat([project_heads(projection, read) for projection, read in gates], dim=-1)
    y, memory = slstm_sequence(layer.slstm_cell, inputs, state.get("slstm_state"), document_start)
    return normalise_heads(layer.group_norm, y), {"slstm_state": memory, "conv_state": conv_state}
