"""The sLSTM recurrence in plain torch: a few large operations per step, on any device.

Heads come first, so the recurrent product of a step is one batched product. The backward pass computes all derivatives
that do not depend on gradients for many steps at once; what is left to each step is linear. Symbols are those of
`slstm`; T steps, K heads, B rows, D entries per head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

CHUNK = 32
"""Steps whose derivatives are computed at once: enough to fill the vector units, few enough to fit the caches."""


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    gates: Tensor
    """Pre-activations i, f, z and o, (T, K, B, 4, D)."""
    states: Tensor
    """h, c, n and m before the first step and after each, (T + 1, 4, K, B, D)."""
    kernel: Tensor
    """The recurrent matrices in the same type, (K, 4·D, D)."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: a step is so small that waking others costs more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def forward(
    inputs: Tensor, kernel: Tensor, bias: Tensor, state: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Saved]:
    """Hidden states (B, T, K, D), final state (4, B, K, D) and what `backward` needs.

    Takes inputs (B, T, 4, K, D), kernel (K, 4·D, D), bias (4, K, D), state (4, B, K, D) and document starts (B, T).
    """
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    batch, length, _, heads, head_dim = inputs.shape
    gates = torch.empty(length, heads, batch, 4, head_dim, dtype=dtype, device=inputs.device)
    torch.add(inputs.permute(1, 3, 0, 2, 4), bias.transpose(0, 1).unsqueeze(1), out=gates)
    states = torch.empty(length + 1, 4, heads, batch, head_dim, dtype=dtype, device=inputs.device)
    states[0] = state.transpose(1, 2)
    kernel = kernel.to(dtype)
    _forward_steps(gates, states, kernel.transpose(1, 2).contiguous(), _start_masks(starts, length))
    hidden = states[1:, 0].permute(2, 0, 1, 3).contiguous()
    return hidden, states[-1].transpose(1, 2).contiguous(), Saved(gates, states, kernel)


@_one_thread()
def backward(
    saved: Sequence[Tensor], starts: Tensor | None, d_hidden: Tensor, d_final: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of `forward` in inputs (B, T, 4, K, D) and state (4, B, K, D), in the type it computed in.

    The gradient in the inputs is also that of the pre-activations: those of kernel and bias follow from it.
    """
    gates, states, kernel = saved
    length, heads, batch, _, head_dim = gates.shape
    masks = _start_masks(starts, length)
    d_outputs = d_hidden.permute(1, 2, 0, 3).contiguous()
    d_inputs = gates.new_empty(batch, length, 4, heads, head_dim)
    gradient = _StateGradient.after(states[-1], d_final)
    for end in range(length, 0, -CHUNK):
        span = slice(max(0, end - CHUNK), end)
        local = _local_derivatives(gates[span], _known_before(states[:-1][span], masks[span]), states[1:][span])
        _backward_steps(local, gradient, kernel, d_outputs[span], masks[span])
        d_inputs[:, span] = local.gates.permute(2, 0, 3, 1, 4)
    return d_inputs, gradient.before(states[0]).transpose(1, 2)


def _start_masks(starts: Tensor | None, length: int) -> list[Tensor | None]:
    """For each step the rows that begin a document, (B, 1), or None where no row does."""
    if starts is None:
        return [None] * length
    columns, used = starts.t().unsqueeze(-1).unbind(), starts.any(0).tolist()
    return [column if any_row else None for column, any_row in zip(columns, used, strict=True)]


def _forward_steps(gates: Tensor, states: Tensor, weights: Tensor, masks: list[Tensor | None]) -> None:
    """Fill `states[1:]`, and add the recurrent product, by weights (K, D, 4·D), to `gates`."""
    factors = torch.empty_like(states[0, :2])
    values = torch.ones_like(factors)
    steps = zip(gates.flatten(-2).unbind(), gates.unbind(), states.unbind(), states[1:].unbind(), masks, strict=False)
    for step, (product, gate, before, after, mask) in enumerate(steps):
        known = before if mask is None else before.masked_fill(mask, 0)
        product.baddbmm_(known[0], weights)
        _forward_step(gate, known, after, factors, values, may_be_empty=step == 0 or mask is not None)


def _forward_step(
    gate: Tensor, before: Tensor, after: Tensor, factors: Tensor, values: Tensor, *, may_be_empty: bool
) -> None:
    """State after a step from pre-activations (K, B, 4, D) and the state before it, both states (4, K, B, D).

    `factors` (2, K, B, D) is scratch; `values` too, but its second half is ones.
    """
    i, f, z, o = gate.unbind(2)
    _, _, n_before, m_before = before.unbind()
    h, c, n, m = after.unbind()
    iota, phi = factors.unbind()
    kept = logsigmoid(f).add_(m_before)
    torch.maximum(i, kept, out=m)
    if may_be_empty:
        m.copy_(torch.where(n_before == 0, i, m))
        kept = torch.minimum(kept, m)
    torch.sub(i, m, out=iota)
    torch.sub(kept, m, out=phi)
    factors.exp_()
    torch.tanh(z, out=values[0])
    torch.mul(before[1:3], phi, out=after[1:3]).addcmul_(values, iota)
    torch.sigmoid(o, out=h)
    h.mul_(c).div_(n)


class _Local(NamedTuple):
    """Derivatives within some steps, of what a step computes in what it is given."""

    gates: Tensor
    """Of c_t in the pre-activations i, f and z, and of h_t in o, (T, K, B, 4, D); becomes the gates' gradient."""
    gates_by_n: Tensor
    """Of n_t in i and f, (T, K, B, 2, D)."""
    output: Tensor
    """Of h_t in c_t and n_t, (T, 2, K, B, D)."""
    phi: Tensor
    """Of c_t in c_{t-1}, (T, K, B, D)."""
    forgotten: Tensor
    """Of log σ(f) in f, (T, K, B, D)."""
    input_set_m: Tensor
    """Whether m_t is i, (T, K, B, D)."""


def _known_before(states: Tensor, masks: list[Tensor | None]) -> Tensor:
    """States before some steps (T, 4, K, B, D), zero where a document starts."""
    if all(mask is None for mask in masks):
        return states
    known = states.clone()
    for step, mask in enumerate(masks):
        if mask is not None:
            known[step].masked_fill_(mask, 0)
    return known


def _local_derivatives(gates: Tensor, before: Tensor, after: Tensor) -> _Local:
    i, f, z, o = gates.unbind(3)
    h, _, n, m = after.unbind(1)
    _, c_before, n_before, m_before = before.unbind(1)
    iota, value, sigma = torch.exp(i - m), torch.tanh(z), torch.sigmoid(o)
    phi = (logsigmoid(f) + m_before - m).clamp_(max=0).exp_()
    forgotten = torch.sigmoid(-f)
    by_f = forgotten * phi
    return _Local(
        gates=torch.stack([iota * value, by_f * c_before, iota * (1 - value * value), h * (1 - sigma)], dim=3),
        gates_by_n=torch.stack([iota, by_f * n_before], dim=3),
        output=torch.stack([sigma, -h], dim=1).div_(n.unsqueeze(1)),
        phi=phi,
        forgotten=forgotten,
        input_set_m=i == m,
    )


@dataclass
class _StateGradient:
    """The gradient in a state, changed in place from the last step's back to the first."""

    hidden: Tensor
    """In h, (K, B, D), without what the output at that step brings."""
    memory: Tensor
    """In c and n, (2, K, B, D)."""
    surplus: Tensor | None
    """In m, beyond c ∂c + n ∂n, (K, B, D); None if it is zero all along."""

    @classmethod
    def after(cls, last: Tensor, d_final: Tensor | None) -> "_StateGradient":
        """From the gradient in the final state (4, B, K, D), and that state (4, K, B, D)."""
        if d_final is None:
            zeros = torch.zeros_like(last[:3])
            return cls(zeros[0], zeros[1:], None)
        d_final = d_final.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        memory = d_final[1:3]
        return cls(d_final[0], memory, d_final[3] - (last[1:3] * memory).sum(0))

    def before(self, first: Tensor) -> Tensor:
        """The gradient in the initial state, of that state, both (4, K, B, D)."""
        d_m = (first[1:3] * self.memory).sum(0)
        if self.surplus is not None:
            d_m += self.surplus
        return torch.cat([self.hidden.unsqueeze(0), self.memory, d_m.unsqueeze(0)])


def _backward_steps(
    local: _Local, gradient: _StateGradient, kernel: Tensor, d_outputs: Tensor, masks: list[Tensor | None]
) -> None:
    """Take `gradient` back over some steps, turning `local.gates` into the gradient of the pre-activations."""
    hidden, memory = gradient.hidden, gradient.memory
    d_c, d_n = memory.unsqueeze(3).unbind()
    by_c, by_n, by_h = local.gates[..., :3, :].unbind(), local.gates_by_n.unbind(), local.gates[..., 3, :].unbind()
    only_i_and_f, products = local.gates[..., :2, :].unbind(), local.gates.flatten(-2).unbind()
    output, phi, d_output = local.output.unbind(), local.phi.unbind(), d_outputs.unbind()
    for step in reversed(range(len(masks))):
        hidden += d_output[step]
        memory.addcmul_(output[step], hidden)
        by_c[step].mul_(d_c)
        only_i_and_f[step].addcmul_(by_n[step], d_n)
        by_h[step].mul_(hidden)
        if gradient.surplus is not None:
            _pass_surplus(local, gradient.surplus, step)
        memory *= phi[step]
        torch.bmm(products[step], kernel, out=hidden)
        mask = masks[step]
        if mask is not None:
            hidden.masked_fill_(mask, 0)
            memory.masked_fill_(mask, 0)


def _pass_surplus(local: _Local, surplus: Tensor, step: int) -> None:
    """Give the surplus to i where i set m; elsewhere to f, and to the step before."""
    i, f, _, _ = local.gates[step].unbind(2)
    to_input = surplus * local.input_set_m[step]
    i += to_input
    surplus -= to_input
    f += surplus * local.forgotten[step]
