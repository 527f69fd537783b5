"""Naive twins: what `recurrence`, `nearby` and `window` compute, position after position."""

import torch
from torch import Tensor

from student.model.kernels.chunks import NOTHING, Memory
from student.model.transplant.sums.recurrence import HeadInputs
from student.model.transplant.sums.weighted import Weighted
from student.model.transplant.sums.window import WindowInputs, chunk_size


def recurrence(inputs: HeadInputs, memory: Memory | None, document_start: Tensor | None) -> tuple[Weighted, Memory]:
    """As `recurrence.recurrence`, by the equations of its module, one step after the other."""
    inputs = inputs._replace(v=inputs.values_of_each_head())
    empty = _empty_memory(inputs)
    c, n, m = empty if memory is None else memory
    steps = []
    for t in range(inputs.q.shape[2]):
        q, k, v, i, log_forget = (x[:, :, t] for x in inputs)
        if document_start is not None:
            begins = document_start[:, t]
            c, n, m = (
                torch.where(begins.view(-1, *[1] * (x.dim() - 1)), none, x)
                for x, none in zip((c, n, m), empty, strict=True)
            )
        previous, m = m, torch.maximum(log_forget + m, i)
        kept, added = torch.exp(log_forget + previous - m), torch.exp(i - m)
        c = kept[..., None, None] * c + added[..., None, None] * k[..., :, None] * v[..., None, :]
        n = kept[..., None] * n + added[..., None] * k
        steps.append(Weighted(torch.einsum("bhfd,bhf->bhd", c, q.to(c.dtype)), (n * q).sum(-1), m))
    return Weighted(*(torch.stack(x, dim=2) for x in zip(*steps, strict=True))), Memory(c, n, m)


def _empty_memory(inputs: HeadInputs) -> Memory:
    like, features = inputs.i[:, :, 0], inputs.q.shape[-1]
    c = like.new_zeros(*like.shape, features, inputs.v.shape[-1])
    return Memory(c, like.new_zeros(*like.shape, features), torch.full_like(like, NOTHING))


def nearby(log_weights: Tensor, v: Tensor, place: Tensor) -> Weighted:
    """As `nearby.nearby`, by its equation."""
    rows, heads, length, lags = log_weights.shape
    values, weight = v.new_zeros(rows, heads, length, v.shape[-1]), v.new_zeros(rows, heads, length)
    for row in range(rows):
        for t in range(length):
            for lag in range(min(lags, int(place[row, t]) + 1)):
                w = torch.exp(log_weights[row, :, t, lag])
                values[row, :, t] += w[:, None] * v[row, :, lags - 1 + t - lag]
                weight[row, :, t] += w
    return Weighted(values, weight, torch.zeros_like(weight))


def window(inputs: WindowInputs, size: int, scaling: float) -> Weighted:
    """As `window.window`, every query against every key that it sees."""
    rows, heads, length, width = inputs.q.shape
    groups, chunk = heads // inputs.k.shape[1], chunk_size(size, length)
    values, weight = inputs.v.new_zeros(rows, heads, length, width), inputs.v.new_zeros(rows, heads, length)
    for row in range(rows):
        for head in range(heads):
            for t in range(length):
                place, key_head = int(inputs.place[row, t]), head // groups
                near = [size + t - lag for lag in range(min(size, place + 1))]
                far = [sink for sink in range(inputs.sink_k.shape[3]) if place - sink >= size]
                scores = torch.cat(
                    [
                        inputs.k[row, key_head, near] @ inputs.q[row, head, t],
                        inputs.sink_k[row, key_head, t // chunk, far] @ inputs.sink_q[row, head, t],
                    ]
                )
                seen = torch.cat([inputs.v[row, key_head, near], inputs.sink_v[row, key_head, t // chunk, far]])
                w = torch.exp(scores * scaling)
                values[row, head, t] = w @ seen
                weight[row, head, t] = w.sum()
    return Weighted(values, weight, torch.zeros_like(weight))
