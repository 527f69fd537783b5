"""Cross-entropy and KL with their gradient in one pass: the loss costs little more than two products with the LM head.

The weights of both terms are known before the forward pass. So each chunk's logits are overwritten by the gradient of
the weighted sum, and multiplied by the head: that is the gradient of the hidden states (n, d), and all that is kept.
The backward pass multiplies it by the incoming gradient. No logits are computed twice or kept, and no gradient is
computed for a head that needs none.

Memory for n valid positions and a head (V, d): one chunk of logits (one more in exact mode, and one where a soft cap
follows the head), a block of `BLOCK_LOGITS` on a CPU, and 4 n d bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from delta_common.installed import has_triton
from student.loss.divergence import Divergence, TermWeights
from student.loss.softmax_passes import SoftmaxPasses, TorchPasses
from student.model.frozen import FrozenHead

CHUNK_BYTES = {"cpu": 2**27, "cuda": 2**29}
"""Memory for a chunk's logits by default: products with fewer rows are slower, and more rows gain little."""

BLOCK_LOGITS = 2**20
"""Logits that torch's operations take at once on a CPU: few enough to stay in its cache between operations."""

GPU_TILE = 128
"""Rows of a matrix product that a GPU works on together."""

HALF_SCALE = 256.0
"""The larger weight of a gradient kept in float16, in which a probability below 6e-8 times it is lost."""


@dataclass(frozen=True)
class FusedLoss:
    """A micro-batch's weighted sum, and the sums it is made of; all 0-dimensional."""

    value: Tensor
    """`weights.cross_entropy CE + weights.kl KL`, differentiable."""
    cross_entropy: Tensor
    """Sum over valid positions, detached."""
    kl: Tensor
    """Sum over valid positions without the factor T², detached; 0 without a teacher."""


def fused_loss(
    hidden_states: Tensor,  # (B, T, d)
    head: FrozenHead,
    labels: Tensor,  # (B, T) int64
    positions: Tensor,  # (n,) int64, the valid ones of the flattened batch
    divergence: Divergence | None,  # there, in order
    weights: TermWeights,
    *,
    chunk_tokens: int | None = None,
) -> FusedLoss:
    """The weighted sum of cross-entropy and, where a divergence is given, KL; gradients for hidden states and head.

    Logits are in the head's dtype. Sums over them and the kept gradient are in float32, or float64 for float64. The
    kept gradient is multiplied by the incoming one, such as a loss scale, before it is rounded to the hidden states'
    dtype.
    """
    job = _Job(positions, labels.flatten()[positions], divergence, weights, head, chunk_tokens)
    found = _Function.apply(hidden_states, head.weight, head.bias, job)  # type: ignore[no-untyped-call]
    return FusedLoss(*found)


@dataclass(frozen=True)
class _Job:
    """What is not differentiated: n valid positions of the flattened batch, their labels (n,) and their teacher."""

    positions: Tensor
    labels: Tensor
    divergence: Divergence | None
    weights: TermWeights
    head: FrozenHead
    chunk_tokens: int | None


class _Function(torch.autograd.Function):
    """The gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, bias: Tensor | None, job: _Job) -> tuple[Tensor, ...]:
        flat = hidden_states.flatten(0, -2)
        kept = [
            torch.zeros_like(tensor, dtype=_wide(tensor)) if tensor is not None and needed else None
            for tensor, needed in zip((flat, weight, bias), ctx.needs_input_grad[:3], strict=True)
        ]
        sums = _sums_and_gradients(flat, replace(job.head, weight=weight, bias=bias), job, *kept)
        ctx.save_for_backward(*kept)
        ctx.shape, ctx.dtypes = hidden_states.shape, (hidden_states.dtype, weight.dtype, weight.dtype)
        cross_entropy, kl = sums.to(_wide(hidden_states)).unbind()
        ctx.mark_non_differentiable(cross_entropy, kl)
        return job.weights.cross_entropy * cross_entropy + job.weights.kl * kl, cross_entropy, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, from_above: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *head = (
            None if kept is None else (kept * from_above).to(dtype)
            for kept, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return None if hidden is None else hidden.view(ctx.shape), *head, None


def _sums_and_gradients(
    flat: Tensor,  # (B T, d)
    head: FrozenHead,
    job: _Job,
    hidden_gradient: Tensor | None,
    weight_gradient: Tensor | None,
    bias_gradient: Tensor | None,
) -> Tensor:
    """Sums of CE and KL, (2,) float64; writes the gradients of their weighted sum into those that are not None."""
    unit = _unit(head.weight.dtype, job.weights)
    weights = TermWeights(job.weights.cross_entropy / unit, job.weights.kl / unit)
    size = _chunk_size(head, job.chunk_tokens)
    rows = min(size, len(job.positions))
    workspace, slopes = head.workspace(rows), head.slope_workspace(rows)
    teacher_workspace = None if job.divergence is None else job.divergence.workspace(rows)
    sums = torch.zeros(2, dtype=torch.float64, device=flat.device)
    for positions, labels, divergence in _split(size, job.positions, job.labels, job.divergence):
        states = flat.index_select(0, positions).to(head.weight.dtype)
        with_padding = workspace[: len(labels)]
        slope = None if slopes is None else slopes[: len(labels)]
        logits = head.logits_into(with_padding, states, slope)
        teacher = None if divergence is None else divergence.with_logits(teacher_workspace)
        sums += _write_gradient(logits, labels, teacher, weights)
        head.pull_back(logits, slope)
        if hidden_gradient is not None:
            hidden_gradient[positions] = (with_padding @ head.weight).to(hidden_gradient.dtype).mul_(unit)
        if weight_gradient is not None:
            weight_gradient.add_(with_padding.T @ states, alpha=unit)
        if bias_gradient is not None:
            bias_gradient.add_(with_padding.sum(dim=0, dtype=bias_gradient.dtype), alpha=unit)
    return sums


def _write_gradient(logits: Tensor, labels: Tensor, divergence: Divergence | None, weights: TermWeights) -> Tensor:
    """Sums of CE and KL, (2,) float64; logits (n, V) are replaced by the gradient of their weighted sum."""
    if _has_kernels(logits):
        from student.loss.softmax_passes_triton import TritonPasses

        return _write_block(logits, labels, divergence, weights, TritonPasses())
    rows = max(1, BLOCK_LOGITS // logits.shape[1])
    passes = TorchPasses(
        torch.empty(min(rows, len(logits)), logits.shape[1], dtype=_wide(logits), device=logits.device)
    )
    sums = torch.zeros(2, dtype=torch.float64, device=logits.device)
    for block, block_labels, part in _split(rows, logits, labels, divergence):
        wide = block.to(passes.scratch.dtype).contiguous()
        sums += _write_block(wide, block_labels, part, weights, passes)
        if wide is not block:
            block.copy_(wide)
    return sums


def _write_block(
    logits: Tensor, labels: Tensor, divergence: Divergence | None, weights: TermWeights, passes: SoftmaxPasses
) -> Tensor:
    """The same for as many positions as the passes take at once."""
    label_logits = logits.gather(1, labels[:, None])[:, 0]
    if divergence is None:
        found = passes.read(logits, 1.0)
        log_z, kl = found.at_one, torch.zeros_like(found.at_one)
        passes.write(logits, found, torch.full_like(log_z, weights.cross_entropy), kl)
    else:
        log_z, kl = divergence.write_gradient(logits, weights, passes)
    logits.scatter_add_(1, labels[:, None], torch.full_like(logits[:, :1], -weights.cross_entropy))
    return torch.stack([(log_z - label_logits).sum(dtype=torch.float64), kl.sum(dtype=torch.float64)])


def _split(
    size: int, tensor: Tensor, labels: Tensor, divergence: Divergence | None
) -> Iterator[tuple[Tensor, Tensor, Divergence | None]]:
    """`size` positions at a time, in order."""
    if not len(labels):
        return iter(())
    parts = repeat(None) if divergence is None else divergence.split(size)
    return zip(torch.split(tensor, size), torch.split(labels, size), parts, strict=False)


def _has_kernels(logits: Tensor) -> bool:
    return logits.is_cuda and logits.dtype != torch.float64 and has_triton()


def _chunk_size(head: FrozenHead, chunk_tokens: int | None) -> int:
    """Positions per chunk; on a GPU a multiple of `GPU_TILE`."""
    device, row = head.weight.device.type, len(head.weight) * head.weight.element_size()
    size = chunk_tokens or max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // row)
    return size if chunk_tokens or device == "cpu" or size < GPU_TILE else size - size % GPU_TILE


def _unit(dtype: torch.dtype, weights: TermWeights) -> float:
    """What gradients of logits are counted in, so that float16 holds them: 1 / tokens alone would make them vanish."""
    largest = max(abs(weights.cross_entropy), abs(weights.kl))
    return largest / HALF_SCALE if dtype == torch.float16 and largest else 1.0


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
