"""Checks of the kernels that keep targets against the definitions in float64, on any device Triton runs on.

On a CPU they need Triton's interpreter: `TRITON_INTERPRET=1 python target_checks.py NAME` runs the check NAME.
"""

import sys

import torch
from torch import Tensor

from teacher_cache.format.arrays import LOG_MASS_FLOOR
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.settings import PRESETS
from teacher_cache.targets import estimate
from teacher_cache.targets.keep import KeptTargets, keep_by_kernels
from tests.helpers.layouts import layout, zipf_logits

FLOAT_ERROR = 1e-5
"""Of a log-mass in float32, beside the half step it is rounded by, and of each unit of a sum of probabilities."""


def strided(logits: Tensor, columns: int, device: str) -> Tensor:
    """The same logits as a view of rows that are longer by some columns nobody may look at."""
    whole = torch.full((len(logits), logits.shape[1] + columns), 1e4, dtype=logits.dtype, device=device)
    whole[:, : logits.shape[1]] = logits
    return whole[:, : logits.shape[1]]


def offsets(rows: int, device: str, seed: int = 5) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)


def keep(logits: Tensor, wanted: TargetLayout, uniform: Tensor) -> KeptTargets:
    labels = torch.arange(len(logits), device=logits.device) % logits.shape[1]
    kept = keep_by_kernels(logits, labels, wanted, uniform)
    assert torch.equal(kept.label_logits, logits.float().gather(1, labels[:, None])[:, 0])
    return kept


def inclusion_of_rest(logits: Tensor, kept: KeptTargets, wanted: TargetLayout) -> Tensor:
    """`pi` (n, V) float64 outside the top_k, from what is stored of the top_k and the log-mass; 0 in the top_k."""
    top = kept.values[:, : wanted.top_k].double()
    relative = (logits.double() - top[:, :1]).scatter_(1, kept.ids[:, : wanted.top_k], -torch.inf)
    scales = estimate.proposal_scales(top, kept.log_mass.double(), wanted)
    return sum(s[:, None] * torch.exp(relative / t) for s, t in scales).clamp(max=1.0)


def distance_from_marks(inclusion: Tensor, ids: Tensor, used: Tensor, uniform: Tensor) -> Tensor:
    """How far each mark lies outside its token's part of the running sum in float64, (n, samples); 0 where unused.

    The tokens drawn, in the order of their ids, belong to the marks 1 - u, 2 - u, and so on.
    """
    in_order = ids.masked_fill(~used, inclusion.shape[1]).sort(-1).values.clamp(max=inclusion.shape[1] - 1)
    place = torch.arange(ids.shape[1], device=ids.device)
    ends = inclusion.cumsum(-1).gather(1, in_order)
    starts = ends - inclusion.gather(1, in_order)
    marks = place + 1 - uniform[:, None]
    outside = torch.maximum(starts - marks, marks - ends).clamp(min=0.0)
    return outside.where(place < used.sum(-1, keepdim=True), 0.0)


def check_against_definition(logits: Tensor, wanted: TargetLayout, uniform: Tensor) -> None:
    """Top_k with the lowest ids first, log-mass to its rounding, and the samples that the marks fall on."""
    kept, top_k = keep(logits, wanted, uniform), wanted.top_k
    order = logits.double().sort(dim=-1, descending=True, stable=True)
    assert torch.equal(kept.ids[:, :top_k], order.indices[:, :top_k])
    assert torch.equal(kept.values[:, :top_k].double(), order.values[:, :top_k])
    rest = order.values[:, top_k:] - order.values[:, :1]
    exact = torch.stack([torch.logsumexp(rest / t, -1) for t in wanted.node_temperatures], -1)
    error = (kept.log_mass.double() - exact.clamp(min=LOG_MASS_FLOOR)).abs().max()
    assert error <= wanted.log_mass_step / 2 + FLOAT_ERROR, float(error)
    if wanted.samples:
        check_samples(logits, kept, wanted, uniform)


def check_samples(logits: Tensor, kept: KeptTargets, wanted: TargetLayout, uniform: Tensor) -> None:
    ids, values = kept.ids[:, wanted.top_k :], kept.values[:, wanted.top_k :]
    used = values > -torch.inf
    inclusion = inclusion_of_rest(logits, kept, wanted)
    assert (values[:, :-1] >= values[:, 1:]).all()
    assert (ids[~used] == 0).all()
    assert torch.equal(values[used], logits.float().gather(1, ids)[used])
    assert (inclusion.gather(1, ids)[used] > 0).all()
    assert ((used.sum(-1) - inclusion.sum(-1)).abs() < 1 + FLOAT_ERROR * wanted.samples).all()
    assert all(len(set(row[taken].tolist())) == int(taken.sum()) for row, taken in zip(ids, used, strict=True))
    error = distance_from_marks(inclusion, ids, used, uniform).max()
    assert error <= FLOAT_ERROR * wanted.samples, float(error)


def check_presets(device: str, rows: int = 3, vocab: int = 5000) -> None:
    for index, (top_k, samples) in enumerate(PRESETS.values()):
        logits = zipf_logits(rows, vocab, seed=index)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            some = strided(logits.to(dtype), 24, device)
            check_against_definition(some, layout(top_k, samples), offsets(rows, device, index))


def check_sizes(device: str) -> None:
    """Vocabularies from less than a block on, at and around a tile's end; from one entry to all of them."""
    for vocab, top_k, samples in [
        (2, 1, 1), (2, 2, 3), (40, 40, 0), (64, 64, 20), (127, 3, 200), (128, 8, 50), (129, 64, 0), (900, 64, 12),
        (4095, 5, 1), (4096, 17, 256), (4097, 8, 120), (8193, 33, 7),
    ]:  # fmt: skip
        logits = strided(zipf_logits(3, vocab, seed=vocab), 7, device)
        check_against_definition(logits, layout(top_k, samples), offsets(3, device, vocab))


def check_values(device: str) -> None:
    """Ties, masked tokens, one token above all others, all equal, zeros of either sign, large and small logits."""
    plain = zipf_logits(8, 700)
    plain[0] = plain[0].round()
    plain[1, ::3] = -torch.inf
    plain[2, 650] += 80.0
    plain[3] = 1.25
    plain[4] *= 6.0
    plain[5] = torch.where(torch.arange(700) % 2 == 0, 0.0, -0.0)
    plain[6, 5:] = -torch.inf
    plain[7] -= 300.0
    for dtype in (torch.bfloat16, torch.float32):
        for top_k, samples in [(4, 12), (8, 50)]:
            logits = plain.to(dtype).to(device)
            check_against_definition(logits, layout(top_k, samples), offsets(8, device, samples))


def check_temperatures(device: str) -> None:
    """Other nodes than the default's, and proposals at none of them."""
    logits = zipf_logits(4, 1500).to(device)
    for fields in [
        {"nodes": 2},
        {"nodes": 9, "temperatures": (0.9, 2.3)},
        {"proposal": ((1.07, 0.4), (1.9, 0.6))},
        {"temperatures": (1.0, 1.7), "proposal": ((1.0, 1.0),)},
        {"temperatures": (0.5, 4.0), "nodes": 7, "proposal": ((0.5, 0.2), (1.0, 0.3), (2.0, 0.3), (4.0, 0.2))},
    ]:
        check_against_definition(logits, layout(6, 30, **fields), offsets(4, device))


def check_independence(device: str, rows: int = 6, vocab: int = 3000) -> None:
    """The same bits again, and whichever positions are worked on together."""
    wanted, uniform = layout(8, 50), offsets(rows, device)
    logits = strided(zipf_logits(rows, vocab).bfloat16(), 16, device)
    whole, again = keep(logits, wanted, uniform), keep(logits, wanted, uniform)
    labels = torch.arange(rows, device=device) % vocab
    cut = rows // 3
    parts = [
        keep_by_kernels(logits[part], labels[part], wanted, uniform[part]) for part in (slice(cut), slice(cut, None))
    ]
    for name, first in vars(whole).items():
        assert torch.equal(first, getattr(again, name)), name
        assert torch.equal(first, torch.cat([getattr(part, name) for part in parts])), name
    assert torch.equal(keep(logits.T.contiguous().T, wanted, uniform).ids, whole.ids)


def check_repeats(device: str) -> None:
    """A token that two marks fell on, as sums that round apart can have it, is kept once."""
    from teacher_cache.targets import keep_triton

    drawn = torch.tensor([[3, 3, 7, 9, -1], [2, 5, 5, 5, 8]], dtype=torch.int32, device=device)
    values = torch.tensor([[1.0, 1.0, 4.0, 1.0, 0.0], [0.5, 2.0, 2.0, 2.0, 2.0]], device=device)
    ids, kept = torch.full((2, 6), -7, device=device), torch.full((2, 6), 99.0, device=device)
    keep_triton._rank[(2,)](drawn, values, ids, kept, samples=5, entries=6, width=8)
    none = -torch.inf
    assert ids.tolist() == [[-7, 7, 3, 9, 0, 0], [-7, 5, 8, 2, 0, 0]]
    assert kept.tolist() == [[99.0, 4.0, 1.0, 1.0, none, none], [99.0, 2.0, 2.0, 0.5, none, none]]


def check_frequencies(device: str, positions: int = 200) -> None:
    """How often each token is drawn against `pi`: z-scores at most 4.5 (false alarm about 0.2 %; seed fixed)."""
    wanted = layout(3, 12)
    logits = zipf_logits(1, 300).to(device).expand(positions, -1).contiguous()
    kept = keep(logits, wanted, offsets(positions, device, 1))
    expected = inclusion_of_rest(logits[:1], kept_first(kept), wanted)[0]
    ids = kept.ids[:, wanted.top_k :][kept.values[:, wanted.top_k :] > -torch.inf]
    counts = torch.bincount(ids, minlength=300).double()
    deviation = (expected * (1 - expected) * positions).sqrt().clamp(min=1.0)
    assert ((counts - expected * positions) / deviation).abs().max() < 4.5
    given_by_cache = estimate.inclusion_probabilities(kept.values, kept.log_mass, wanted)[:, wanted.top_k :]
    used = kept.values[:, wanted.top_k :] > -torch.inf
    assert torch.allclose(given_by_cache[used].double(), expected[ids], rtol=2e-4)


def kept_first(kept: KeptTargets) -> KeptTargets:
    return KeptTargets(*(column[:1] for column in vars(kept).values()))


CHECKS = {
    "presets": check_presets,
    "sizes": check_sizes,
    "values": check_values,
    "temperatures": check_temperatures,
    "independence": check_independence,
    "repeats": check_repeats,
    "frequencies": check_frequencies,
}

if __name__ == "__main__":
    CHECKS[sys.argv[1]]("cpu")
