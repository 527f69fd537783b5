"""Keeping targets with PyTorch: few passes over the vocabulary, then a search in some of its blocks of 128 tokens.

The naive twin is `keep_naive`, the kernels are `keep_triton`. Positions are worked on in slices that fit a processor's
cache. The powers `exp(rest / T)` at the nodes are products of one exponential, `2^x`, which takes a quarter of the time
of `exp`. The passes leave, for each block, its largest logit and its mass at each temperature needed. From these follow

- the top_k: they lie in the k blocks with the largest maxima; among equal logits the lowest id comes first;
- the log-mass of the rest: the masses of those k blocks are summed again without the top_k, so nothing is subtracted;
- the sums of inclusion probabilities: mixtures of the blocks' masses, except in blocks where `min(1, n r)` is 1.

Results do not depend, to the bit, on which positions are worked on together: every operation rounds as IEEE 754 says,
except `2^x`, which torch rounds differently in the last few numbers of each thread's part. So each thread gets whole
rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets.estimate import proposal_scales

BLOCK = 128
"""Tokens in a block."""

THREAD_ELEMENTS = 2**19
"""Logits each CPU thread works on at once: 2 MiB of float32, which stay in its cache during all passes."""

GPU_ELEMENTS = 2**26
"""The same for a whole GPU: 256 MiB, enough to keep it busy."""

TORCH_GRAIN = 2**15
"""Fewest numbers that torch gives a thread of its own."""

LOG2_E = 1 / math.log(2)
LOW_BITS = 2**31 - 1
MAX_MULTIPLE = 8


@dataclass(frozen=True)
class PowerScheme:
    """How `exp(rest / T)` at the nodes, then at the proposal's temperatures between them, is made of few exponentials.

    exponents: log2(e) times beta of each base: the step between nodes; the first node, unless it is `multiple` steps;
    then each of the proposal's temperatures between nodes. places: the index among the powers of each part of the
    proposal.
    """

    exponents: tuple[float, ...]
    multiple: int
    nodes: int
    places: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of powers."""
        return self.nodes + len(self.exponents) - (1 if self.multiple else 2)

    @classmethod
    def of(cls, layout: TargetLayout) -> "PowerScheme":
        """The scheme for a layout's nodes and proposal."""
        betas = [1 / t for t in layout.node_temperatures]
        step = betas[1] - betas[0]
        multiple = steps_to_first_node(betas)
        between = [t for t, _ in layout.proposal if t not in layout.node_temperatures]
        temperatures = [*layout.node_temperatures, *between]
        first = [] if multiple else [betas[0]]
        return cls(
            exponents=tuple(LOG2_E * beta for beta in (step, *first, *(1 / t for t in between))),
            multiple=multiple,
            nodes=len(betas),
            places=tuple(temperatures.index(t) for t, _ in layout.proposal),
        )

    def powers(self, bases: Sequence[Tensor], space: Tensor) -> Iterator[Tensor]:
        """The powers, one after another; each is valid only until the next is asked for, as nodes share `space`."""
        step = bases[0]
        power = _whole_power(step, self.multiple, space) if self.multiple else space.copy_(bases[1])
        for node in range(self.nodes):
            yield power.mul_(step) if node else power
        yield from bases[1 if self.multiple else 2 :]


def steps_to_first_node(betas: Sequence[float]) -> int:
    """The first node's beta in steps between nodes; 0 where it is no whole multiple, or one above `MAX_MULTIPLE`."""
    step = betas[1] - betas[0]
    steps = round(betas[0] / step)
    return steps if 1 <= steps <= MAX_MULTIPLE and math.isclose(steps * step, betas[0]) else 0


def _whole_power(base: Tensor, exponent: int, out: Tensor) -> Tensor:
    if exponent == 1:
        return out.copy_(base)
    torch.mul(base, base, out=out)
    for place, digit in enumerate(f"{exponent:b}"[1:]):
        if place:
            out.mul_(out)
        if digit == "1":
            out.mul_(base)
    return out


def in_blocks(columns: Tensor, filling: float = -torch.inf) -> Tensor:
    """Columns (n, V) as (n, blocks, BLOCK), the last block padded; no copy where rows are whole blocks."""
    missing = -columns.shape[1] % BLOCK
    filled = functional.pad(columns, (0, missing), value=filling) if missing else columns
    return filled.contiguous().view(len(columns), -1, BLOCK)


def take_blocks(blocks: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
    """m blocks (m, BLOCK) of (n, blocks, BLOCK), by rows (m,) and block numbers (m,)."""
    return blocks.flatten(0, 1).index_select(0, rows * blocks.shape[1] + numbers)


@dataclass(frozen=True)
class Workspace:
    """Memory for one slice, reused: allocating a fresh page costs more than the arithmetic done on it.

    power and each base are (rows, blocks, BLOCK) float32.
    """

    power: Tensor
    bases: list[Tensor]

    @classmethod
    def of(cls, stored: Tensor, scheme: PowerScheme) -> "Workspace":
        """A workspace for slices of logits (n, V)."""
        count = -(-stored.shape[1] // BLOCK)
        elements = torch.get_num_threads() * THREAD_ELEMENTS if stored.device.type == "cpu" else GPU_ELEMENTS
        rows = max(1, min(elements // (count * BLOCK), len(stored)))
        rows = _whole_parts(rows, count, stored.device)
        power, *bases = torch.zeros(1 + len(scheme.exponents), rows, count, BLOCK, device=stored.device)
        return cls(power, bases)


def _whole_parts(rows: int, blocks: int, device: torch.device) -> int:
    """`rows` of (rows, blocks, BLOCK) rounded up so that every thread gets whole rows."""
    unit = torch.get_num_threads() * -(-TORCH_GRAIN // (blocks * BLOCK)) if device.type == "cpu" else 1
    return -(-rows // unit) * unit


def summarise(blocks: Tensor, scheme: PowerScheme, space: Workspace) -> tuple[Tensor, Tensor]:
    """The pass over the whole vocabulary, of logits (n, blocks, BLOCK).

    Returns maxima (n, blocks) and masses (n, powers, blocks) relative to the row's largest logit, both float32.
    """
    maxima = torch.empty(blocks.shape[:2], device=blocks.device)
    masses = torch.empty(len(blocks), scheme.count, blocks.shape[1], device=blocks.device)
    for start in range(0, len(blocks), len(space.power)):
        some = slice(start, min(start + len(space.power), len(blocks)))
        rows = some.stop - start
        whole = _whole_parts(rows, blocks.shape[1], blocks.device)
        relative = space.bases[-1]
        relative[:rows].copy_(blocks[some])
        torch.amax(relative[:rows], -1, out=maxima[some])
        relative[:rows].sub_(maxima[some].amax(-1)[:, None, None])
        for base, exponent in zip(space.bases, scheme.exponents, strict=True):
            torch.mul(relative[:whole], exponent, out=base[:whole]).exp2_()
        powers = scheme.powers([base[:rows] for base in space.bases], space.power[:rows])
        for place, power in enumerate(powers):
            torch.sum(power, -1, out=masses[some, place])
    return maxima, masses


@dataclass(frozen=True)
class Rest:
    """The vocabulary without the top_k, for n positions.

    blocks (n, blocks, BLOCK) at their stored precision; largest (n,) float32: the largest logit; threshold (n,) float32
    and last (n,) int64: logit and id of the last of the top_k.
    """

    blocks: Tensor
    scheme: PowerScheme
    largest: Tensor
    threshold: Tensor
    last: Tensor

    def logits(self, rows: Tensor, numbers: Tensor) -> Tensor:
        """Logits (m, BLOCK) float32 of m blocks relative to the largest, -inf for the top_k."""
        found = take_blocks(self.blocks, rows, numbers).float()
        threshold, last = self.threshold[rows, None], (self.last[rows] - numbers * BLOCK)[:, None]
        inside = torch.arange(BLOCK, device=found.device)
        taken = (found > threshold) | ((found == threshold) & (inside <= last))
        return found.masked_fill_(taken, -torch.inf).sub_(self.largest[rows, None])

    def powers(self, logits: Tensor) -> Iterator[Tensor]:
        """Powers (m, BLOCK) of `logits`, one after another; each is valid only until the next is asked for."""
        spare = _whole_parts(len(logits), 1, logits.device) - len(logits)
        bases = [functional.pad(logits * e, (0, 0, 0, spare)).exp2_()[: len(logits)] for e in self.scheme.exponents]
        return self.scheme.powers(bases, torch.empty_like(logits))

    def inclusion(self, scales: Tensor, rows: Tensor, numbers: Tensor) -> Tensor:
        """`min(1, n r)` (m, BLOCK) in m blocks, given the scales (n, parts) of the proposal."""
        rate = torch.zeros(len(rows), BLOCK, device=scales.device)
        for place, power in enumerate(self.powers(self.logits(rows, numbers))):
            for part, taken in enumerate(self.scheme.places):
                if taken == place:
                    rate += power * scales[rows, part, None]
        return rate.clamp_(max=1.0)


@dataclass(frozen=True)
class Top:
    """The top_k of n positions, and what sampling needs to know of the rest.

    ids (n, k) int64; values (n, k) float32; log_mass (n, J) float32, not yet rounded. Of the rest, relative to the
    largest logit: maxima (n, blocks) and masses (n, powers, blocks) float32.
    """

    ids: Tensor
    values: Tensor
    log_mass: Tensor
    maxima: Tensor
    masses: Tensor
    rest: Rest


def take_top(blocks: Tensor, layout: TargetLayout, scheme: PowerScheme, space: Workspace) -> Top:
    """Find the top_k of logits (n, blocks, BLOCK) at their stored precision, and the masses of the rest."""
    maxima, masses = summarise(blocks, scheme, space)
    numbers = torch.arange(maxima.shape[1], device=blocks.device)
    picked = _keys(maxima, numbers).topk(min(layout.top_k, maxima.shape[1]), dim=-1).indices
    rows = torch.arange(len(blocks), device=blocks.device)[:, None].expand_as(picked)
    candidates = take_blocks(blocks, rows.flatten(), picked.flatten()).float().view(len(blocks), -1)
    ids = (picked[..., None] * BLOCK + torch.arange(BLOCK, device=blocks.device)).flatten(1)
    found = _keys(candidates, ids).topk(layout.top_k, dim=-1).indices
    ids, values = ids.gather(1, found), candidates.gather(1, found)
    rest = Rest(blocks, scheme, values[:, 0], values[:, -1], ids[:, -1])
    maxima.sub_(values[:, :1])
    rows, picked = rows.flatten(), picked.flatten()
    left = candidates.scatter_(1, found, -torch.inf).sub_(values[:, :1]).view(-1, BLOCK)
    maxima[rows, picked] = left.amax(-1)
    for place, power in enumerate(rest.powers(left)):
        masses[rows, place, picked] = power.sum(-1)
    log_mass = masses[:, : scheme.nodes].sum(-1).log_()
    return Top(ids, values, log_mass, maxima, masses, rest)


def _keys(logits: Tensor, ids: Tensor) -> Tensor:
    """int64 keys that sort by logit and, among equal logits, put the lowest id highest."""
    bits = (logits + 0.0).view(torch.int32)  # -0 + 0 is 0
    ordered = bits ^ ((bits >> 31) & LOW_BITS)
    return (ordered.long() << 32) | (ids ^ LOW_BITS)


def draw(top: Top, log_mass: Tensor, layout: TargetLayout, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sampled ids (n, samples) and whether each place is used; log_mass (n, J) must be rounded as it is stored."""
    found = proposal_scales(top.values.double(), log_mass.double(), layout)
    scales = torch.stack([scale for scale, _ in found], dim=1).float()
    totals, highest = torch.zeros_like(top.maxima), torch.zeros_like(top.maxima)
    for scale, (_, temperature), place in zip(scales.T, found, top.rest.scheme.places, strict=True):
        totals += top.masses[:, place] * scale[:, None]
        highest += torch.exp(top.maxima / temperature) * scale[:, None]
    cut = torch.nonzero(highest > 1.0, as_tuple=True)
    totals[cut] = top.rest.inclusion(scales, *cut).sum(-1)
    return draw_systematically(totals, partial(top.rest.inclusion, scales), uniform, layout.samples)


def draw_systematically(
    totals: Tensor, inclusion: Callable[[Tensor, Tensor], Tensor], uniform: Tensor, samples: int
) -> tuple[Tensor, Tensor]:
    """Draw each token with its inclusion probability, at most `samples` per row; ids (n, samples) and which are used.

    totals (n, blocks): sums of the inclusion probabilities over each block; `inclusion(rows, blocks)` gives those in m
    blocks, (m, BLOCK). Marks run through a row's cumulative sum in steps of 1 from one uniform offset, (n,) float64,
    so the number drawn is the row's sum rounded up or down. Sums over blocks, and inside blocks with a mark, are
    float64.
    """
    ends = totals.double().cumsum(-1)
    marks = torch.arange(1, samples + 1, device=totals.device) - uniform[:, None]
    block = torch.searchsorted(ends, marks)
    rows, places = torch.nonzero(block < ends.shape[1], as_tuple=True)
    block = block[rows, places]
    start = functional.pad(ends, (1, 0))[rows, block]
    found = inclusion(rows, block)
    inside = found.double().cumsum(-1)
    place = (inside < (marks[rows, places] - start)[:, None]).sum(-1).clamp_(max=BLOCK - 1)
    ids = totals.new_zeros(marks.shape, dtype=torch.long)
    used = torch.zeros_like(ids, dtype=torch.bool)
    ids[rows, places] = block * BLOCK + place
    # A block's two sums may round differently; then a mark may fall on a token of probability 0, or twice on one.
    used[rows, places] = found.gather(1, place[:, None])[:, 0] > 0
    used[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    return ids, used
