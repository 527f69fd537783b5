# Kernels are Triton's language: their arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False
"""Keeping targets on a GPU: one pass over the vocabulary, then a search in a few of its blocks of 128 tokens.

Its twin is `keep.keep_by_torch`. Imports Triton, so import this module only where there is a GPU. The pass leaves, for
each block, its largest logit and, relative to that, its mass at every temperature needed: 8 % of the bytes of bfloat16
logits. From these the top_k, the log-mass and the sums of inclusion probabilities follow as in `keep_torch`.

Sums of probabilities are cumulated as whole multiples of 2^-40, which is exact: no result depends on the order of
additions or on which positions are worked on together.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from teacher_cache.format.manifest import TargetLayout
from teacher_cache.format.nodes import interpolation_weights
from teacher_cache.targets.keep_torch import LOG2_E, steps_to_first_node

MAX_TOP_K = 64
MAX_SAMPLES = 256
"""Larger layouts do not fit into the registers of a kernel's program."""

BLOCK = tl.constexpr(128)
TILE_BLOCKS = 32
"""Blocks per program in the pass over the vocabulary."""

MARKS = 8
"""Sampled entries per program of `_draw`."""

FIXED_POINT = tl.constexpr(2.0**40)
LOWEST = tl.constexpr(-(2**63))
LOW_BITS = tl.constexpr(2**31 - 1)
NEGATIVE_INFINITY = tl.constexpr(float("-inf"))


@dataclass(frozen=True)
class Top:
    """The top_k of n positions, and what sampling needs to know of the rest.

    ids (n, K) int64 and values (n, K) float32, of which the first top_k columns are filled; log_mass (n, J) float32,
    not yet rounded. Of the rest: maxima (n, blocks) and, relative to them, masses (n, exponents, blocks) float32.
    thresholds (n,) int64: the key (`_keys`) of the last of the top_k.
    """

    ids: Tensor
    values: Tensor
    log_mass: Tensor
    maxima: Tensor
    masses: Tensor
    thresholds: Tensor


def serves(layout: TargetLayout) -> bool:
    """Whether the kernels can handle a layout of this size."""
    return layout.top_k <= MAX_TOP_K and layout.samples <= MAX_SAMPLES


def take_top(logits: Tensor, layout: TargetLayout) -> Top:
    """Find the top_k and the log-mass of the rest, of logits (n, V) at their stored precision; rows may be strided."""
    rows, vocab = logits.shape
    blocks, constants = triton.cdiv(vocab, BLOCK.value), _Constants.of(layout, logits.device)
    nodes, exponents = len(layout.node_temperatures), len(constants.exponents) - 1

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(rows, *shape, dtype=dtype, device=logits.device)

    top = Top(
        ids=new(layout.entries, dtype=torch.int64),
        values=new(layout.entries),
        log_mass=new(nodes),
        maxima=new(blocks),
        masses=new(exponents, blocks),
        thresholds=new(dtype=torch.int64),
    )
    tiles, lanes = triton.cdiv(blocks, TILE_BLOCKS), triton.next_power_of_2(layout.top_k)
    with torch.cuda.device_of(logits):
        _summarise_blocks[(rows * tiles,)](
            logits, top.maxima, top.masses, constants.exponents, logits.stride(0), vocab, blocks, tiles,
            nodes=nodes, exponent_count=exponents, multiple=constants.multiple, tile_blocks=TILE_BLOCKS, num_warps=4,
        )  # fmt: skip
        _take_top[(rows,)](
            logits, top.maxima, top.masses, constants.exponents, top.ids, top.values, top.log_mass, top.thresholds,
            logits.stride(0), vocab, blocks,
            nodes=nodes, exponent_count=exponents, top_k=layout.top_k, entries=layout.entries,
            picks=min(layout.top_k, blocks), lanes=lanes, width=_width(blocks), num_warps=4 if lanes <= 16 else 8,
        )  # fmt: skip
    return top


def draw(logits: Tensor, top: Top, log_mass: Tensor, layout: TargetLayout, uniform: Tensor) -> None:
    """Fill the sampled places of `top`, given log_mass (n, J) as it is stored and uniform (n,) float64 in [0, 1)."""
    rows, blocks = top.maxima.shape
    vocab, samples, parts = logits.shape[1], layout.samples, len(layout.proposal)
    constants = _Constants.of(layout, logits.device)
    scales = torch.empty(rows, parts, dtype=torch.float32, device=logits.device)
    sums = torch.empty(rows, blocks, dtype=torch.int64, device=logits.device)
    drawn = torch.empty(rows, samples, dtype=torch.int32, device=logits.device)
    drawn_values = torch.empty(rows, samples, dtype=torch.float32, device=logits.device)
    steps = torch.arange(1, samples + 1, device=logits.device)
    marks = (steps - uniform[:, None]).mul_(FIXED_POINT.value).ceil_().long()
    with torch.cuda.device_of(logits):
        _scale_proposal[(rows,)](
            top.values, log_mass, constants.proposal, scales,
            nodes=log_mass.shape[1], parts=parts, top_k=layout.top_k, entries=layout.entries,
            lanes=triton.next_power_of_2(layout.top_k), num_warps=1,
        )  # fmt: skip
        _sum_inclusion[(rows,)](
            logits, top.maxima, top.masses, top.values, top.thresholds, constants.proposal, scales, sums,
            logits.stride(0), vocab, blocks,
            nodes=log_mass.shape[1], exponent_count=top.masses.shape[1], parts=parts, entries=layout.entries,
            width=_width(blocks), num_warps=4,
        )  # fmt: skip
        ends = sums.cumsum(1)
        hit = torch.searchsorted(ends, marks, out_int32=True)
        groups = triton.cdiv(samples, MARKS)
        _draw[(rows * groups,)](
            logits, ends, marks, hit, top.values, top.thresholds, constants.proposal, scales, drawn, drawn_values,
            logits.stride(0), vocab, blocks, groups,
            nodes=log_mass.shape[1], parts=parts, samples=samples, entries=layout.entries, marks_taken=MARKS,
            num_warps=2,
        )  # fmt: skip
        width = triton.next_power_of_2(samples)
        _rank[(rows,)](
            drawn, drawn_values, top.ids, top.values,
            samples=samples, entries=layout.entries, width=width, num_warps=max(1, min(8, width // 16)),
        )  # fmt: skip


def _width(blocks: int) -> int:
    """Number of lanes that hold one number per block."""
    return max(16, int(triton.next_power_of_2(blocks)))


@dataclass(frozen=True)
class _Constants:
    """A layout's constants on a device. Exponentials are powers of 2, so a temperature T has exponent `log2(e) / T`.

    exponents (E + 1,): of the nodes, of the proposal's temperatures at no node, and of the step between nodes.
    multiple: as `steps_to_first_node` gives it. proposal (parts, 3 + J): for each part its exponent, its place among
    the exponents, n times its share, and the weights that give log2 of the mass there from the log-masses.
    """

    exponents: Tensor
    multiple: int
    proposal: Tensor

    @classmethod
    def of(cls, layout: TargetLayout, device: torch.device) -> "_Constants":
        """Cached: copying even a few numbers to a GPU waits for all its queued work."""
        return _constants(layout.node_temperatures, layout.proposal, layout.samples, device)


@lru_cache(maxsize=16)
def _constants(
    nodes: tuple[float, ...], proposal: tuple[tuple[float, float], ...], samples: int, device: torch.device
) -> _Constants:
    betas = [1 / t for t in nodes]
    step = betas[1] - betas[0]
    between = [t for t, _ in proposal if t not in nodes]
    temperatures = [*nodes, *between]
    parts = [
        [LOG2_E / t, temperatures.index(t), samples * share, *(interpolation_weights(nodes, t) * LOG2_E)]
        for t, share in proposal
    ]
    exponents = [LOG2_E / t for t in temperatures] + [step * LOG2_E]
    return _Constants(
        torch.tensor(exponents, dtype=torch.float32, device=device),
        steps_to_first_node(betas),
        torch.tensor(parts, dtype=torch.float32, device=device),
    )


@triton.jit
def _keys(z, ids):
    """int64 keys that sort by logit and, among equal logits, put the lowest id highest."""
    bits = tl.where(z == 0.0, 0.0, z).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & LOW_BITS)
    return (ordered.to(tl.int64) << 32) | (ids ^ LOW_BITS).to(tl.int64)


@triton.jit
def _key_id(key):
    return (key & LOW_BITS).to(tl.int32) ^ LOW_BITS


@triton.jit
def _key_value(key):
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & LOW_BITS)).to(tl.float32, bitcast=True)


@triton.jit
def _finite_or_zero(maximum):
    """What a block's logits are taken relative to: its maximum, or 0 where all are -inf."""
    return tl.where(maximum == NEGATIVE_INFINITY, 0.0, maximum)


@triton.jit
def _summarise_blocks(
    logits, maxima, masses, exponents, row_stride, vocab, blocks, tiles,
    nodes: tl.constexpr, exponent_count: tl.constexpr, multiple: tl.constexpr, tile_blocks: tl.constexpr,
):  # fmt: skip
    """Maxima and masses of the blocks of one tile of one row."""
    row = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    block = tile * tile_blocks + tl.arange(0, tile_blocks)
    ids = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    places = logits + row * row_stride + ids
    # With a mask, a vocabulary that is not a multiple of 16 would make every load a load of single numbers.
    if (tile + 1) * tile_blocks * BLOCK <= vocab:
        z = tl.load(places).to(tl.float32)
    else:
        z = tl.load(places, mask=ids < vocab, other=NEGATIVE_INFINITY).to(tl.float32)
    maximum = tl.max(z, axis=1)
    tl.store(maxima + row * blocks + block, maximum, mask=block < blocks)
    relative = z - _finite_or_zero(maximum)[:, None]
    step = tl.exp2(relative * tl.load(exponents + exponent_count))
    if multiple > 0:
        power = step
        for _ in tl.static_range(multiple - 1):
            power = power * step
    else:
        power = tl.exp2(relative * tl.load(exponents))
    masses += row * exponent_count * blocks + block
    for _ in tl.static_range(nodes):
        tl.store(masses, tl.sum(power, axis=1), mask=block < blocks)
        masses += blocks
        power = power * step
    for exponent in tl.static_range(nodes, exponent_count):
        power = tl.exp2(relative * tl.load(exponents + exponent))
        tl.store(masses, tl.sum(power, axis=1), mask=block < blocks)
        masses += blocks


@triton.jit
def _take_top(
    logits, maxima, masses, exponents, top_ids, top_values, log_masses, thresholds, row_stride, vocab, blocks,
    nodes: tl.constexpr, exponent_count: tl.constexpr, top_k: tl.constexpr, entries: tl.constexpr,
    picks: tl.constexpr, lanes: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """One row's top_k and log-mass; the blocks the top_k lie in are summarised again without them."""
    row = tl.program_id(0).to(tl.int64)
    block, lane = tl.arange(0, width), tl.arange(0, lanes)
    maximum = tl.load(maxima + row * blocks + block, mask=block < blocks, other=NEGATIVE_INFINITY)
    block_keys = tl.where(block < blocks, _keys(maximum, block), LOWEST)
    picked = tl.zeros((lanes,), dtype=tl.int32)
    for pick in range(picks):
        best = tl.max(block_keys, axis=0)
        picked = tl.where(lane == pick, _key_id(best), picked)
        block_keys = tl.where(block_keys == best, LOWEST, block_keys)
    ids = picked[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    valid = (lane[:, None] < picks) & (ids < vocab)
    z = tl.load(logits + row * row_stride + ids, mask=valid, other=NEGATIVE_INFINITY).to(tl.float32)
    keys = tl.where(valid, _keys(z, ids), LOWEST)
    left = keys
    threshold = tl.max(tl.max(left, axis=1), axis=0)
    largest = _key_value(threshold)
    for rank in range(top_k):
        threshold = tl.max(tl.max(left, axis=1), axis=0)
        tl.store(top_ids + row * entries + rank, _key_id(threshold).to(tl.int64))
        tl.store(top_values + row * entries + rank, _key_value(threshold))
        left = tl.where(left == threshold, LOWEST, left)
    tl.store(thresholds + row, threshold)
    rest = tl.where(keys < threshold, z, NEGATIVE_INFINITY)
    rest_maximum = tl.max(rest, axis=1)
    tl.store(maxima + row * blocks + picked, rest_maximum, mask=lane < picks)
    relative = rest - _finite_or_zero(rest_maximum)[:, None]
    masses += row * exponent_count * blocks
    for exponent in tl.static_range(exponent_count):
        scale = tl.load(exponents + exponent)
        rest_mass = tl.sum(tl.exp2(relative * scale), axis=1)
        if exponent < nodes:
            # By now, picked blocks and lanes past the last block have the lowest key.
            mass = tl.load(masses + block, mask=block_keys > LOWEST, other=0.0)
            total = tl.sum(tl.exp2((maximum - largest) * scale) * mass, axis=0)
            total += tl.sum(tl.exp2((rest_maximum - largest) * scale) * rest_mass, axis=0)
            tl.store(log_masses + row * nodes + exponent, tl.log(total))
        tl.store(masses + picked, rest_mass, mask=lane < picks)
        masses += blocks


@triton.jit
def _scale_proposal(
    top_values, log_masses, proposal, scales,
    nodes: tl.constexpr, parts: tl.constexpr, top_k: tl.constexpr, entries: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """`n a_j / Z(T_j)` of each part of the proposal for one row, as in `estimate.proposal_scales`."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, lanes)
    values = tl.load(top_values + row * entries + lane, mask=lane < top_k, other=NEGATIVE_INFINITY)
    relative = values - tl.load(top_values + row * entries)
    for part in tl.static_range(parts):
        exponent = tl.load(proposal)
        log2_rest = 0.0
        for node in tl.static_range(nodes):
            log2_rest += tl.load(log_masses + row * nodes + node) * tl.load(proposal + 3 + node)
        partition = tl.sum(tl.exp2(relative * exponent), axis=0) + tl.exp2(log2_rest)
        tl.store(scales + row * parts + part, tl.load(proposal + 2) / partition)
        proposal += 3 + nodes


@triton.jit
def _inclusion(relative, proposal, scales, nodes: tl.constexpr, parts: tl.constexpr):
    """`min(1, n r)` of logits relative to the largest, 0 for -inf; `scales` are one row's."""
    rate = tl.zeros_like(relative)
    for part in tl.static_range(parts):
        rate += tl.load(scales + part) * tl.exp2(relative * tl.load(proposal + part * (3 + nodes)))
    return tl.minimum(rate, 1.0)


@triton.jit
def _sum_inclusion(
    logits, maxima, masses, top_values, thresholds, proposal, scales, sums, row_stride, vocab, blocks,
    nodes: tl.constexpr, exponent_count: tl.constexpr, parts: tl.constexpr, entries: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Sums of one row's inclusion probabilities over each block, in multiples of 2^-40."""
    row, block = tl.program_id(0).to(tl.int64), tl.arange(0, width)
    largest, threshold = tl.load(top_values + row * entries), tl.load(thresholds + row)
    maximum = tl.load(maxima + row * blocks + block, mask=block < blocks, other=NEGATIVE_INFINITY)
    highest = tl.zeros((width,), dtype=tl.float32)
    total = tl.zeros((width,), dtype=tl.float32)
    for part in tl.static_range(parts):
        exponent = tl.load(proposal + part * (3 + nodes))
        place = tl.load(proposal + part * (3 + nodes) + 1).to(tl.int32)
        rate = tl.load(scales + row * parts + part) * tl.exp2((maximum - largest) * exponent)
        mass = tl.load(masses + (row * exponent_count + place) * blocks + block, mask=block < blocks, other=0.0)
        highest += rate
        total += rate * mass
    # Where the largest has n r > 1, the mixture of masses is too large: sum over that block's tokens instead.
    cut = tl.where(highest > 1.0, block, width)
    one = tl.min(cut, axis=0)
    while one < width:
        ids = one * BLOCK + tl.arange(0, BLOCK)
        z = tl.load(logits + row * row_stride + ids, mask=ids < vocab, other=NEGATIVE_INFINITY).to(tl.float32)
        z = tl.where(_keys(z, ids) < threshold, z, NEGATIVE_INFINITY)
        inclusion = _inclusion(z - largest, proposal, scales + row * parts, nodes, parts)
        total = tl.where(block == one, tl.sum(inclusion, axis=0), total)
        cut = tl.where(block == one, width, cut)
        one = tl.min(cut, axis=0)
    tl.store(sums + row * blocks + block, (total * FIXED_POINT).to(tl.int64), mask=block < blocks)


@triton.jit
def _draw(
    logits, ends, marks, hit, top_values, thresholds, proposal, scales, drawn, drawn_values,
    row_stride, vocab, blocks, groups,
    nodes: tl.constexpr, parts: tl.constexpr, samples: tl.constexpr, entries: tl.constexpr, marks_taken: tl.constexpr,
):  # fmt: skip
    """The tokens that some marks of one row fall on, with their logits; id -1 where there is none."""
    row = (tl.program_id(0) // groups).to(tl.int64)
    mark = (tl.program_id(0) % groups) * marks_taken + tl.arange(0, marks_taken)
    column = tl.arange(0, BLOCK)[None, :]
    largest, threshold = tl.load(top_values + row * entries), tl.load(thresholds + row)
    asked = mark < samples
    block = tl.load(hit + row * samples + mark, mask=asked, other=0)
    used = asked & (block < blocks)
    block = tl.where(used, block, 0)
    start = tl.load(ends + row * blocks + block - 1, mask=used & (block > 0), other=0)
    target = tl.load(marks + row * samples + mark, mask=asked, other=0) - start
    ids = block[:, None] * BLOCK + column
    z = tl.load(logits + row * row_stride + ids, mask=ids < vocab, other=NEGATIVE_INFINITY).to(tl.float32)
    rest = tl.where(_keys(z, ids) < threshold, z, NEGATIVE_INFINITY)
    inclusion = _inclusion(rest - largest, proposal, scales + row * parts, nodes, parts)
    inside = tl.cumsum((inclusion * FIXED_POINT).to(tl.int64), axis=1)
    place = tl.minimum(tl.sum((inside < target[:, None]).to(tl.int32), axis=1), BLOCK - 1)
    # A block's two sums may round differently; then a mark may fall on a token of probability 0.
    hits = column == place[:, None]
    used &= tl.sum(tl.where(hits, inclusion, 0.0), axis=1) > 0.0
    value = tl.sum(tl.where(hits, z, 0.0), axis=1)
    tl.store(drawn + row * samples + mark, tl.where(used, block * BLOCK + place, -1), mask=asked)
    tl.store(drawn_values + row * samples + mark, tl.where(used, value, NEGATIVE_INFINITY), mask=asked)


@triton.jit
def _rank(drawn, drawn_values, ids_out, values_out, samples: tl.constexpr, entries: tl.constexpr, width: tl.constexpr):
    """One row's drawn tokens, each once, in falling order of their logits; written after the top_k."""
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, width)
    ids = tl.load(drawn + row * samples + place, mask=place < samples, other=-1)
    before = tl.load(drawn + row * samples + place - 1, mask=(place > 0) & (place < samples), other=-1)
    values = tl.load(drawn_values + row * samples + place, mask=place < samples, other=NEGATIVE_INFINITY)
    used = (ids >= 0) & (ids != before)
    values = tl.where(used, values, NEGATIVE_INFINITY)
    larger = values[None, :] > values[:, None]
    equal_and_before = (values[None, :] == values[:, None]) & (place[None, :] < place[:, None])
    rank = tl.sum((larger | equal_and_before).to(tl.int32), axis=1)
    out = row * entries + entries - samples + rank
    tl.store(ids_out + out, tl.where(used, ids, 0).to(tl.int64), mask=rank < samples)
    tl.store(values_out + out, values, mask=rank < samples)
