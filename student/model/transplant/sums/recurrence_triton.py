# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""The recurrence of `recurrence.py` on a GPU, in Triton.

Forward, `_memories` goes through the chunks of a head and leaves the memory in front of each; `_outputs` then takes all
chunks at once. Backward, `_d_memories` goes through them from the end and leaves the gradient of the memory behind
each; `_d_queries` and `_d_keys` take all chunks at once and compute the weights again. With F_t the logarithms of the
forget gates added up,

    w_tj = exp(F_t - F_j + i_j - m_t) q_t·k_j     dL/dF_t = q_t·dq_t - k_t·dk_t     dL/di_j = k_j·dk_j

so the gates need only these products. The scale m counts as a constant: whoever reads the sums reads them with their
scale, and what reaches a gradient through m cancels. The memory behind a chunk has the scale exp(m) of that border, its
gradient exp(-m): both exponents stay at or below 0.

Positions see what lies at or behind `begins`, where their document begins; below 0 they see the memory before the
sequence too. Symbols are those of `recurrence`; `block` features are taken at a time.
"""

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

from student.model.kernels.chunks import Memory
from student.model.transplant.sums.recurrence import HeadInputs, chunk_on_gpu
from student.model.transplant.sums.weighted import Weighted

NOTHING = tl.constexpr(-1e30)
MOST_FEATURES = 64
"""Features taken at a time."""


def forward(
    inputs: HeadInputs, begins: Tensor | None, memory: Memory | None, sums: Weighted, borders: Memory, after: Memory
) -> None:
    """Fill `sums`; `borders` with the memories in front of all chunks, m behind the last too; c and n of `after`.

    Takes q and k (B, H, T, F), v (B, K, T, D) of K heads that divide H, gates in float32, begins (B, T) int32, and a
    memory in float32. Where nobody wants `after` it is empty, and stays so.
    """
    by_head, by_chunk, sizes = _grids(inputs, begins)
    q, k, v = _row_arguments(inputs)
    gates = _gate_arguments(inputs, begins)
    with torch.cuda.device_of(inputs.q):  # type: ignore[no-untyped-call]
        _memories[by_head](
            *(*k, *v, *gates),
            *((borders.m,) * 3 if memory is None else (x.contiguous() for x in memory)),
            *(*borders, after.c, after.n),
            **sizes,
            has_memory=memory is not None,
            wants_memory=after.c.numel() > 0,
        )
        _outputs[by_chunk](*q, *k, *v, *gates, *borders, *_strided(sums.values), sums.weight, sums.log_scale, **sizes)


def backward(
    inputs: HeadInputs,
    begins: Tensor | None,
    borders: Memory,
    log_scale: Tensor,
    d_values: Tensor,
    d_weight: Tensor,
) -> HeadInputs:
    """Gradients of the inputs, from what `forward` took and filled and the gradients of its sums.

    That of v is of all heads, (B, H, T, D).
    """
    q, k, v = inputs[:3]
    by_head, by_chunk, sizes = _grids(inputs, begins)
    d_q, d_k, d_v = (x.new_empty(q.shape[0], q.shape[2], q.shape[1], x.shape[3]).transpose(1, 2) for x in (q, k, v))
    by_query, by_key = (torch.empty_like(log_scale) for _ in range(2))
    rows = _row_arguments(inputs)
    upstream = (*_gate_arguments(inputs, begins), *_strided(d_values), d_weight.contiguous(), log_scale)
    d_borders = (torch.empty_like(borders.c), torch.empty_like(borders.n))
    found = (*_strided(d_k), *_strided(d_v), by_key)
    with torch.cuda.device_of(q):  # type: ignore[no-untyped-call]
        _d_memories[by_head](*rows[0], *upstream, borders.m, *d_borders, **sizes)
        _d_queries[by_chunk](*rows[0], *rows[1], *rows[2], *upstream, *borders, *_strided(d_q), by_query, **sizes)
        _d_keys[by_chunk](*rows[0], *rows[1], *rows[2], *upstream, *d_borders, borders.m, *found, **sizes)
    d_f = (by_query - by_key).flip(-1).cumsum(-1).flip(-1)
    return HeadInputs(d_q, d_k, d_v, by_key, d_f)


def _strided(x: Tensor):
    """A tensor (B, H, T, ...) whose last entries lie side by side, and its strides."""
    x = x if x.dim() == 3 or x.stride(-1) == 1 else x.contiguous()
    return (x, *x.stride()[:3])


def _row_arguments(inputs: HeadInputs):
    """Queries, keys and values, and how many heads share a value."""
    q, k, v = inputs[:3]
    return _strided(q), _strided(k), (*_strided(v), q.shape[1] // v.shape[1])


def _gate_arguments(inputs: HeadInputs, begins: Tensor | None):
    return (*_strided(inputs.i), *_strided(inputs.log_forget), inputs.i if begins is None else begins.contiguous())


def _grids(inputs: HeadInputs, begins: Tensor | None):
    q, v = inputs.q, inputs.v
    rows, heads, length, features = q.shape
    narrow, size = q.element_size() == 2, chunk_on_gpu(q)
    together = min(features, MOST_FEATURES if narrow else MOST_FEATURES // 2)
    sizes = {
        "length": length,
        "heads": heads,
        "f_size": features,
        "d_size": v.shape[3],
        "size": size,
        "block": together,
        "has_documents": begins is not None,
        "precision": "tf32" if narrow else "ieee",
        "num_warps": 4 if v.shape[3] <= 64 else 8,
    }
    return (rows * heads, features // together), (triton.cdiv(length, size), rows * heads), sizes


@triton.jit
def _tile(pointer, stride, t, length, first, count: tl.constexpr):
    """(size, count) from `first` on of positions t; zeros behind the end."""
    return tl.load(
        pointer + t[:, None] * stride + first + tl.arange(0, count)[None, :], mask=t[:, None] < length, other=0.0
    )


@triton.jit
def _gates(i, i_t, f, f_t, begins, origin, length, size: tl.constexpr, has_documents: tl.constexpr):
    """Of a chunk: input gates, forget gates added up from its beginning, where documents begin, and that of its end."""
    t = origin + tl.arange(0, size)
    valid = t < length
    gate = tl.load(i + t * i_t, mask=valid, other=NOTHING)
    forgotten = tl.cumsum(tl.load(f + t * f_t, mask=valid, other=0.0), 0)
    if has_documents:
        begin = tl.load(begins + t, mask=valid, other=-1)
        last = tl.load(begins + tl.minimum(origin + size, length) - 1)
    else:
        begin = tl.full([size], -1, tl.int32)
        last = -1
    return gate, forgotten, begin, last


@triton.jit
def _decays(gate, forgotten, begin, origin, size: tl.constexpr):
    """Logarithms of how much of position j (columns) is left at position t, and which are seen."""
    local = tl.arange(0, size)
    sees = (local[:, None] >= local[None, :]) & (origin + local[None, :] >= begin[:, None])
    return tl.where(sees, forgotten[:, None] - forgotten[None, :] + gate[None, :], NOTHING), sees


@triton.jit
def _added(m, gate, forgotten, last, origin, size: tl.constexpr):
    """How much of each position of a chunk the memory behind it has, and of the memory before it; and the new m."""
    local = tl.arange(0, size)
    total = tl.sum(tl.where(local == size - 1, forgotten, 0.0), 0)
    seen = origin + local >= last
    log_added = tl.where(seen, total - forgotten + gate, NOTHING)
    log_kept = tl.where(last < origin, total + m, NOTHING)
    new = tl.maximum(tl.max(log_added, 0), log_kept)
    return tl.where(seen, tl.exp(log_added - new), 0.0), tl.where(last < origin, tl.exp(log_kept - new), 0.0), new


@triton.jit
def _memories(
    k, k_b, k_h, k_t, v, v_b, v_h, v_t, groups, i, i_b, i_h, i_t, f, f_b, f_h, f_t, begins,
    c0, n0, m0, cs, ns, ms, c1, n1,
    length, heads, f_size: tl.constexpr, d_size: tl.constexpr, size: tl.constexpr, block: tl.constexpr,
    has_documents: tl.constexpr, precision: tl.constexpr, has_memory: tl.constexpr, wants_memory: tl.constexpr,
):  # fmt: skip
    program, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * block
    row, head = program // heads, program % heads
    k += row * k_b + head * k_h
    v += row * v_b + (head // groups) * v_h
    i += row * i_b + head * i_h
    f += row * f_b + head * f_h
    begins += row * length
    chunks = tl.cdiv(length, size)
    feature = first + tl.arange(0, block)
    tile = feature[:, None] * d_size + tl.arange(0, d_size)[None, :]
    if has_memory:
        c, n, m = (
            tl.load(c0 + program * f_size * d_size + tile),
            tl.load(n0 + program * f_size + feature),
            tl.load(m0 + program),
        )
    else:
        c, n, m = tl.zeros([block, d_size], tl.float32), tl.zeros([block], tl.float32), -1e30
    for chunk in range(chunks):
        border, origin = program * chunks + chunk, chunk * size
        tl.store(cs + border * f_size * d_size + tile, c.to(cs.dtype.element_ty))
        tl.store(ns + border * f_size + feature, n)
        tl.store(ms + border + program, m)
        gate, forgotten, _, last = _gates(i, i_t, f, f_t, begins, origin, length, size, has_documents)
        added, kept, m = _added(m, gate, forgotten, last, origin, size)
        t = origin + tl.arange(0, size)
        k_c, v_c = _tile(k, k_t, t, length, first, block), _tile(v, v_t, t, length, 0, d_size)
        scaled = (k_c * added[:, None]).to(k_c.dtype)
        c = c * kept + tl.dot(tl.trans(scaled), v_c, input_precision=precision)
        n = n * kept + tl.sum(scaled.to(tl.float32), 0)
    tl.store(ms + program * (chunks + 1) + chunks, m)
    if wants_memory:
        tl.store(c1 + program * f_size * d_size + tile, c)
        tl.store(n1 + program * f_size + feature, n)


@triton.jit
def _outputs(
    q, q_b, q_h, q_t, k, k_b, k_h, k_t, v, v_b, v_h, v_t, groups, i, i_b, i_h, i_t, f, f_b, f_h, f_t, begins,
    cs, ns, ms, values, o_b, o_h, o_t, weight, scale,
    length, heads, f_size: tl.constexpr, d_size: tl.constexpr, size: tl.constexpr, block: tl.constexpr,
    has_documents: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    chunk, program = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, head = program // heads, program % heads
    q += row * q_b + head * q_h
    k += row * k_b + head * k_h
    v += row * v_b + (head // groups) * v_h
    border, origin = program * tl.cdiv(length, size) + chunk, chunk * size
    t = origin + tl.arange(0, size)
    entry = tl.arange(0, d_size)
    found = tl.zeros([size, d_size], tl.float32)
    w = tl.zeros([size, size], tl.float32)
    total = tl.zeros([size], tl.float32)
    for first in range(0, f_size, block):
        feature = first + tl.arange(0, block)
        q_c, k_c = _tile(q, q_t, t, length, first, block), _tile(k, k_t, t, length, first, block)
        c = tl.load(cs + border * f_size * d_size + feature[:, None] * d_size + entry[None, :])
        n = tl.load(ns + border * f_size + feature)
        w += tl.dot(q_c, tl.trans(k_c), input_precision=precision)
        found += tl.dot(q_c, c, input_precision=precision)
        total += tl.sum(q_c.to(tl.float32) * n[None, :], 1)
    gate, forgotten, begin, _ = _gates(
        i + row * i_b + head * i_h, i_t, f + row * f_b + head * f_h, f_t, begins + row * length, origin, length, size,
        has_documents,
    )  # fmt: skip
    decay, sees = _decays(gate, forgotten, begin, origin, size)
    kept = tl.where(begin < origin, forgotten + tl.load(ms + border + program), NOTHING)
    top = tl.maximum(tl.max(decay, 1), kept)
    kept = tl.exp(kept - top)
    w = tl.where(sees, w * tl.exp(decay - top[:, None]), 0.0)
    v_c = _tile(v, v_t, t, length, 0, d_size)
    found = found * kept[:, None] + tl.dot(w.to(v_c.dtype), v_c, input_precision=precision)
    total = total * kept + tl.sum(w, 1)
    values += row * o_b + head * o_h
    tl.store(values + t[:, None] * o_t + entry[None, :], found, mask=t[:, None] < length)
    tl.store(weight + program * length + t, total, mask=t < length)
    tl.store(scale + program * length + t, top, mask=t < length)


@triton.jit
def _d_memories(
    q, q_b, q_h, q_t, i, i_b, i_h, i_t, f, f_b, f_h, f_t, begins,
    d_values, o_b, o_h, o_t, d_weight, scale, ms, d_cs, d_ns,
    length, heads, f_size: tl.constexpr, d_size: tl.constexpr, size: tl.constexpr, block: tl.constexpr,
    has_documents: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    program, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * block
    row, head = program // heads, program % heads
    q += row * q_b + head * q_h
    i += row * i_b + head * i_h
    f += row * f_b + head * f_h
    d_values += row * o_b + head * o_h
    begins += row * length
    chunks = tl.cdiv(length, size)
    feature = first + tl.arange(0, block)
    tile = feature[:, None] * d_size + tl.arange(0, d_size)[None, :]
    d_c, d_n = tl.zeros([block, d_size], tl.float32), tl.zeros([block], tl.float32)
    for back in range(chunks):
        chunk = chunks - 1 - back
        border, origin = program * chunks + chunk, chunk * size
        tl.store(d_cs + border * f_size * d_size + tile, d_c.to(d_cs.dtype.element_ty))
        tl.store(d_ns + border * f_size + feature, d_n)
        t = origin + tl.arange(0, size)
        m = tl.load(ms + border + program)
        gate, forgotten, begin, last = _gates(i, i_t, f, f_t, begins, origin, length, size, has_documents)
        _, kept, _ = _added(m, gate, forgotten, last, origin, size)
        q_c, up = _tile(q, q_t, t, length, first, block), _tile(d_values, o_t, t, length, 0, d_size)
        up_w = tl.load(d_weight + program * length + t, mask=t < length, other=0.0)
        top = tl.load(scale + program * length + t, mask=t < length, other=0.0)
        seen = tl.where((begin < origin) & (t < length), tl.exp(forgotten + m - top), 0.0)
        scaled = (q_c * seen[:, None]).to(q_c.dtype)
        d_c = d_c * kept + tl.dot(tl.trans(scaled), up.to(q_c.dtype), input_precision=precision)
        d_n = d_n * kept + tl.sum(scaled.to(tl.float32) * up_w[:, None], 0)


@triton.jit
def _d_weights(v_c, up, up_w, decay, sees, top, precision: tl.constexpr):
    """Gradients of q·k (size, size), and the factors that the products q·k have in the weights."""
    factors = tl.where(sees, tl.exp(decay - top[:, None]), 0.0)
    return (tl.dot(up, tl.trans(v_c), input_precision=precision) + up_w[:, None]) * factors, factors


@triton.jit
def _d_queries(
    q, q_b, q_h, q_t, k, k_b, k_h, k_t, v, v_b, v_h, v_t, groups, i, i_b, i_h, i_t, f, f_b, f_h, f_t, begins,
    d_values, o_b, o_h, o_t, d_weight, scale, cs, ns, ms, d_q, dq_b, dq_h, dq_t, by_query,
    length, heads, f_size: tl.constexpr, d_size: tl.constexpr, size: tl.constexpr, block: tl.constexpr,
    has_documents: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    chunk, program = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, head = program // heads, program % heads
    q += row * q_b + head * q_h
    k += row * k_b + head * k_h
    d_q += row * dq_b + head * dq_h
    border, origin = program * tl.cdiv(length, size) + chunk, chunk * size
    t = origin + tl.arange(0, size)
    valid = t < length
    gate, forgotten, begin, _ = _gates(
        i + row * i_b + head * i_h, i_t, f + row * f_b + head * f_h, f_t, begins + row * length, origin, length, size,
        has_documents,
    )  # fmt: skip
    decay, sees = _decays(gate, forgotten, begin, origin, size)
    top = tl.load(scale + program * length + t, mask=valid, other=0.0)
    up_w = tl.load(d_weight + program * length + t, mask=valid, other=0.0)
    v_c = _tile(v + row * v_b + (head // groups) * v_h, v_t, t, length, 0, d_size)
    up = _tile(d_values + row * o_b + head * o_h, o_t, t, length, 0, d_size).to(v_c.dtype)
    d_w, _ = _d_weights(v_c, up, up_w, decay, sees & valid[:, None], top, precision)
    d_w = d_w.to(v_c.dtype)
    kept = tl.where((begin < origin) & valid, tl.exp(forgotten + tl.load(ms + border + program) - top), 0.0)
    products = tl.zeros([size], tl.float32)
    for first in range(0, f_size, block):
        feature = first + tl.arange(0, block)
        c = tl.load(cs + border * f_size * d_size + feature[:, None] * d_size + tl.arange(0, d_size)[None, :])
        n = tl.load(ns + border * f_size + feature)
        before = tl.dot(up, tl.trans(c), input_precision=precision) + up_w[:, None] * n[None, :]
        found = tl.dot(d_w, _tile(k, k_t, t, length, first, block), input_precision=precision) + kept[:, None] * before
        products += tl.sum(found * _tile(q, q_t, t, length, first, block).to(tl.float32), 1)
        tl.store(d_q + t[:, None] * dq_t + feature[None, :], found, mask=valid[:, None])
    tl.store(by_query + program * length + t, products, mask=valid)


@triton.jit
def _d_keys(
    q, q_b, q_h, q_t, k, k_b, k_h, k_t, v, v_b, v_h, v_t, groups, i, i_b, i_h, i_t, f, f_b, f_h, f_t, begins,
    d_values, o_b, o_h, o_t, d_weight, scale, d_cs, d_ns, ms, d_k, dk_b, dk_h, dk_t, d_v, dv_b, dv_h, dv_t, by_key,
    length, heads, f_size: tl.constexpr, d_size: tl.constexpr, size: tl.constexpr, block: tl.constexpr,
    has_documents: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    chunk, program = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, head = program // heads, program % heads
    q += row * q_b + head * q_h
    k += row * k_b + head * k_h
    d_k += row * dk_b + head * dk_h
    d_v += row * dv_b + head * dv_h
    border, origin = program * tl.cdiv(length, size) + chunk, chunk * size
    t = origin + tl.arange(0, size)
    valid = t < length
    gate, forgotten, begin, last = _gates(
        i + row * i_b + head * i_h, i_t, f + row * f_b + head * f_h, f_t, begins + row * length, origin, length, size,
        has_documents,
    )  # fmt: skip
    decay, sees = _decays(gate, forgotten, begin, origin, size)
    top = tl.load(scale + program * length + t, mask=valid, other=0.0)
    up_w = tl.load(d_weight + program * length + t, mask=valid, other=0.0)
    v_c = _tile(v + row * v_b + (head // groups) * v_h, v_t, t, length, 0, d_size)
    up = _tile(d_values + row * o_b + head * o_h, o_t, t, length, 0, d_size).to(v_c.dtype)
    d_w, factors = _d_weights(v_c, up, up_w, decay, sees & valid[:, None], top, precision)
    d_w = tl.trans(d_w.to(v_c.dtype))
    added, _, _ = _added(tl.load(ms + border + program), gate, forgotten, last, origin, size)
    entry = tl.arange(0, d_size)
    w = tl.zeros([size, size], tl.float32)
    found_v = tl.zeros([size, d_size], tl.float32)
    products = tl.zeros([size], tl.float32)
    for first in range(0, f_size, block):
        feature = first + tl.arange(0, block)
        q_c, k_c = _tile(q, q_t, t, length, first, block), _tile(k, k_t, t, length, first, block)
        d_c = tl.load(d_cs + border * f_size * d_size + feature[:, None] * d_size + entry[None, :])
        d_n = tl.load(d_ns + border * f_size + feature)
        w += tl.dot(q_c, tl.trans(k_c), input_precision=precision)
        found_v += tl.dot(k_c, d_c, input_precision=precision)
        behind = tl.dot(v_c, tl.trans(d_c), input_precision=precision) + d_n[None, :]
        found = tl.dot(d_w, q_c, input_precision=precision) + added[:, None] * behind
        products += tl.sum(found * k_c.to(tl.float32), 1)
        tl.store(d_k + t[:, None] * dk_t + feature[None, :], found, mask=valid[:, None])
    w = (w * factors).to(up.dtype)
    found_v = found_v * added[:, None] + tl.dot(tl.trans(w), up, input_precision=precision)
    tl.store(d_v + t[:, None] * dv_t + entry[None, :], found_v, mask=valid[:, None])
    tl.store(by_key + program * length + t, products, mask=valid)
