"""The sLSTM recurrence over a whole sequence, forward and backward, in place of xlstm's loop.

Per head (Beck et al. 2024, with the stabiliser m), with gate pre-activations (i, f, z, o) = x_t + R h_{t-1} + b:

    m_t = max(i, m_{t-1} + log σ(f))    ι = exp(i - m_t)    φ = exp(m_{t-1} + log σ(f) - m_t)
    c_t = φ c_{t-1} + ι tanh(z)         n_t = φ n_{t-1} + ι   h_t = σ(o) c_t / n_t

An entry with n = 0 holds nothing yet: there m_t = i, and φ is at most 1. xlstm asks whether n = 0 in the whole batch;
here each entry is asked, which is the same unless a batch mixes empty with used states. Then outputs are still equal,
and (c, n, m) name the same state with another stabiliser. After its first step n is at least 1: ι or φ is 1.

Backward, the stabiliser drops out. Scaling c and n by e^-m leaves every h alone, so the gradient that reaches m_t is
c_t ∂c_t + n_t ∂n_t and cancels against ι and φ; only what the final state's gradient holds beyond that (the surplus)
goes on, to whichever of i and f set m_t. Autograd through the loop gives the same but where both set it, to rounding:
there its max and min take halves that do not cancel.
"""

from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from student.model.kernels import slstm_torch

if TYPE_CHECKING:
    from xlstm.blocks.slstm.cell import sLSTMCell_vanilla

KERNELS = ("auto", "naive", "torch", "triton")
LARGEST_TRITON_HEAD = 128


def slstm_sequence(
    cell: "sLSTMCell_vanilla",
    inputs: Tensor,
    state: Tensor | None = None,
    document_start: Tensor | None = None,
    kernels: str = "auto",
) -> tuple[Tensor, Tensor]:
    """(Output, final state) of xlstm's vanilla sLSTM `cell` for a sequence, in a fraction of the time.

    Args:
        cell: an `sLSTMCell_vanilla`; its recurrent kernel, bias and configuration are used.
        inputs: gate pre-activations (B, T, 4·d), gate by gate, as the layer passes them to the cell.
        state: h, c, n and m before the first step, (4, B, d); zeros if not given.
        document_start: (B, T), true where the state before that position is forgotten.
        kernels: `naive` is xlstm's own loop, `torch` plain torch on any device, `triton` one kernel each way;
            `auto` takes `triton` for CUDA tensors where it can and `torch` elsewhere.

    Returns:
        The output (B, heads, T, d / heads) and the state after the last step (4, B, d), both in the type of `inputs`.
        Arithmetic on 16-bit inputs is in float32, except the recurrent product of `triton`.

    Raises:
        ValueError: unknown `kernels`, a cell that is no sLSTM, or `triton` for what it cannot do.

    """
    heads, head_dim = cell.config.num_heads, cell.config.head_dim
    if cell.config.function != "slstm":
        raise ValueError(f"the cell's function is {cell.config.function!r}; this recurrence is that of 'slstm'")
    chosen = _chosen(kernels, inputs, head_dim)
    if chosen == "naive":
        return _naive(cell, inputs, state, document_start)
    if state is None:
        state = inputs.new_zeros(4, inputs.shape[0], heads * head_dim)
    hidden, final = _Recurrence.apply(  # type: ignore[no-untyped-call]
        inputs.view(*inputs.shape[:2], 4, heads, head_dim),
        cell._recurrent_kernel_,
        cell._bias_.view(4, heads, head_dim),
        state.view(*state.shape[:2], heads, head_dim),
        document_start,
        _steps(chosen),
    )
    return hidden.to(inputs.dtype).transpose(1, 2), final.to(inputs.dtype).flatten(-2)


def _chosen(kernels: str, inputs: Tensor, head_dim: int) -> str:
    if kernels not in KERNELS:
        raise ValueError(f"kernels is {kernels!r}; it must be one of {', '.join(KERNELS)}")
    fits = head_dim <= LARGEST_TRITON_HEAD and inputs.dtype != torch.float64
    if kernels == "triton" and not fits:
        raise ValueError(
            f"kernels 'triton' takes heads of at most {LARGEST_TRITON_HEAD} and no float64, "
            f"but these are heads of {head_dim} in {inputs.dtype}; use 'auto'"
        )
    if kernels == "auto":
        return "triton" if inputs.is_cuda and fits else "torch"
    return kernels


def _steps(chosen: str) -> ModuleType:
    if chosen == "torch":
        return slstm_torch
    from student.model.kernels import slstm_triton

    return slstm_triton


def _naive(
    cell: "sLSTMCell_vanilla", inputs: Tensor, state: Tensor | None, document_start: Tensor | None
) -> tuple[Tensor, Tensor]:
    """xlstm's own loop; with document starts, row by row and document by document."""
    if document_start is None:
        return _xlstm_loop(cell, inputs, state)
    rows = []
    for row, starts in enumerate(document_start):
        row_state = None if state is None or starts[0] else state[:, row : row + 1]
        rows.append(_naive_row(cell, inputs[row : row + 1], row_state, starts.nonzero().flatten().tolist()))
    outputs, finals = zip(*rows, strict=True)
    return torch.cat(outputs), torch.cat(finals, dim=1)


def _naive_row(
    cell: "sLSTMCell_vanilla", inputs: Tensor, state: Tensor | None, starts: list[int]
) -> tuple[Tensor, Tensor]:
    bounds = sorted({0, *starts, inputs.shape[1]})
    outputs = []
    for begin, end in pairwise(bounds):
        output, final = _xlstm_loop(cell, inputs[:, begin:end], state if begin == 0 else None)
        outputs.append(output)
    return torch.cat(outputs, dim=2), final


def _xlstm_loop(cell: "sLSTMCell_vanilla", inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """What the cell's own `forward` does; not by that name, since that is what others replace by `slstm_sequence`."""
    steps = cell._permute_input(inputs)
    states = cell._impl(cell.training, steps, cell._get_state(steps, state))
    return cell._permute_output(states[0][1:]).to(inputs.dtype), states[:, -1].to(inputs.dtype)


class _Recurrence(torch.autograd.Function):
    """Inputs (B, T, 4, K, D), kernel (K, 4·D, D), bias (4, K, D), state (4, B, K, D) to hidden (B, T, K, D), state.

    `steps` is the module that runs through time, with the same two functions as `slstm_torch`.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, kernel: Tensor, bias: Tensor, state: Tensor, starts: Tensor | None, steps: ModuleType
    ) -> tuple[Tensor, Tensor]:
        hidden, final, saved = steps.forward(inputs, kernel, bias, state, starts)
        ctx.save_for_backward(kernel, state, starts, hidden, *saved)
        ctx.steps, ctx.types = steps, (inputs.dtype, bias.dtype)
        ctx.set_materialize_grads(False)
        return hidden, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_hidden: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        kernel, state, starts, hidden, *saved = ctx.saved_tensors
        d_hidden = torch.zeros_like(hidden) if d_hidden is None else d_hidden
        d_inputs, d_state = ctx.steps.backward(saved, starts, d_hidden, d_final)
        before = torch.cat([state[0].to(hidden.dtype).unsqueeze(1), hidden[:, :-1]], dim=1)
        if starts is not None:
            before.masked_fill_(starts[:, :, None, None], 0)
        d_bias = d_inputs.flatten(0, 1).sum(0, dtype=hidden.dtype)
        input_type, bias_type = ctx.types
        # A product of 16-bit factors adds up in float32, and takes a GPU a tenth of the time of one of float32 factors.
        d_inputs, before = d_inputs.to(input_type), before.to(input_type)
        d_kernel = _kernel_gradient(d_inputs.flatten(0, 1), before.flatten(0, 1)).view_as(kernel)
        return (
            d_inputs,
            d_kernel.to(kernel.dtype),
            d_bias.to(bias_type),
            d_state.to(state.dtype),
            None,
            None,
        )


def _kernel_gradient(d_gates: Tensor, hidden: Tensor) -> Tensor:
    """Sums of outer products (K, 4, D, D), of gradients (N, 4, K, D) and the hidden states before them (N, K, D)."""
    by_head = hidden.transpose(0, 1)
    return torch.stack([torch.bmm(d_gate.permute(1, 2, 0), by_head) for d_gate in d_gates.unbind(1)], dim=1)
