"""The mLSTM recurrence through mlstm_kernels' chunkwise Triton kernels, with what they take as they take it.

Their backward pass leaves out what reaches the gradient through the normaliser: a norm follows, which does not see the
scale of a head's output, so nothing does. They give no gradients in the states.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from student.model.kernels.chunks import NOTHING, Memory
from student.model.kernels.mlstm_torch import EPSILON, HeadInputs

LONGEST_CHUNK = 128
HEAD_MULTIPLE = 64
"""The kernels' blocks of channels; a head that they do not divide would read and write past its end."""
FORGET_ALL = -50.0
"""Pre-activation of the forget gate where a document starts. exp(-50) is far below float32's rounding, and σ(-50) still
a normal float32; the kernels' running sums over a chunk lose digits with every such term, so it is no larger."""
FORGET_NOTHING = 50.0


def run(inputs: HeadInputs, memory: Memory | None, document_start: Tensor | None) -> tuple[Tensor, Memory]:
    """As `mlstm_torch.run`, in float32 with products in TF32."""
    from mlstm_kernels.torch.chunkwise.triton_xl_chunk import mlstm_chunkwise__xl_chunk

    q, k, v, i, f = inputs
    if document_start is not None:
        f = f.masked_fill(document_start[:, None], FORGET_ALL)
    length, head = q.shape[2:]
    width, padded = _padded_head(head), _padded_length(length)
    behind, beside = padded - length, width - head
    # The kernels scale by the width they see.
    q = q * math.sqrt(width / head) if beside else q
    q, k, v = (_folded(pad(x, (0, beside, 0, behind)) if beside or behind else x) for x in (q, k, v))
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        h, (c, n, m) = mlstm_chunkwise__xl_chunk(
            q=q,
            k=k,
            v=v,
            i=_folded(pad(i, (0, behind), value=NOTHING)),
            f=_folded(pad(f, (0, behind), value=FORGET_NOTHING)),
            **_initial_states(memory, head, beside),
            return_last_states=True,
            eps=EPSILON,
            chunk_size=min(LONGEST_CHUNK, padded),
            recompute_states_in_bw=False,
        )
    h, c, n, m = (x.squeeze(0).unflatten(0, inputs.i.shape[:2]) for x in (h, c, n, m))
    # xlstm scales keys, the kernels queries.
    c, n = (x.detach() / math.sqrt(head) for x in (c[..., :head, :head], n[..., :head]))
    return h[:, :, :length, :head], Memory(c, n, m.detach().squeeze(-1))


def _folded(x: Tensor) -> Tensor:
    """(B, H, ...) to (1, B·H, ...): the kernels step by the stride of the heads, which says nothing if there is one."""
    return x.flatten(0, 1).unsqueeze(0)


def _padded_head(head: int) -> int:
    if head < HEAD_MULTIPLE:
        return max(16, 1 << (head - 1).bit_length())
    return math.ceil(head / HEAD_MULTIPLE) * HEAD_MULTIPLE


def _padded_length(length: int) -> int:
    if length < LONGEST_CHUNK:
        return max(16, 1 << (length - 1).bit_length())
    return math.ceil(length / LONGEST_CHUNK) * LONGEST_CHUNK


def _initial_states(memory: Memory | None, head: int, beside: int) -> dict[str, Tensor]:
    if memory is None:
        return {}
    c, n = (x.detach() * math.sqrt(head) for x in (memory.c, memory.n))
    return {
        "c_initial": _folded(pad(c, (0, beside, 0, beside))),
        "n_initial": _folded(pad(n, (0, beside))),
        "m_initial": _folded(memory.m.detach()[..., None]),
    }
