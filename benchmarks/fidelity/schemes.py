"""Ways to keep a teacher's distribution, as plain functions: ours through the cache's own code, and the baselines.

Each gives, for n positions at temperature T, the target `p_hat` that the gradient of the distillation term sees, as
`p_hat @ head` (n, d), with the factor that multiplies the student's own distribution (1 unless mass is dropped), and
its estimate of KL(p || q). Bytes per token are ours as a cache stores them; those of a baseline are of the arrays it
needs, after the best lossless compression.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numcodecs import Zstd
from numcodecs.pcodec import PCodec
from numpy.typing import NDArray
from pcodec import ChunkConfig, standalone
from torch import Tensor

from teacher_cache.format.arrays import PAGE_NUMBERS
from teacher_cache.format.manifest import TargetLayout
from teacher_cache.format.packing import second_differences
from teacher_cache.targets import estimate
from teacher_cache.targets.keep import keep_targets

CHUNK = 1024
"""Positions in a compressed chunk, and in a slice of work: 8 rows of 128, a cache's chunk."""


@dataclass(frozen=True)
class Both:
    """What a target is made from at T: the teacher's log Z(T) (n,), the student's log q (n, V) and q @ head (n, d)."""

    log_z: Tensor
    log_q: Tensor
    q_projected: Tensor


@dataclass(frozen=True)
class Target:
    """n positions at one temperature: `p_hat @ head` (n, d), the factor of q (n,), KL's estimate (n,)."""

    projected: Tensor
    student_share: Tensor
    kl: Tensor


@dataclass(frozen=True)
class Entries:
    """What a scheme stores of n positions: ids (n, K), values or counts (n, K), log-mass (n, J) or None."""

    ids: Tensor
    values: Tensor
    log_mass: Tensor | None = None


Keep = Callable[[Tensor, int], Entries]
"""(logits (n, V), seed) → what is stored."""

Aim = Callable[[Entries, Tensor, float, Both, Tensor], Target]
"""(stored, logits (n, V), T, both, head (V, d)) → the target."""

Size = Callable[[Entries, Tensor], float]
"""(stored, logits (n, V)) → bytes of these n positions."""


@dataclass(frozen=True)
class Scheme:
    """A named way to keep distributions; `random` ones are drawn anew with each seed."""

    name: str
    keep: Keep
    aim: Aim
    size: Size
    random: bool
    top_k: int = 0
    samples: int = 0
    proposal: str = ""

    def seeds(self, wanted: int) -> int:
        """Draws to make: one where nothing is random."""
        return wanted if self.random else 1


def sampled(name: str, layout: TargetLayout) -> Scheme:
    """Our entries: top_k and sampled, log-mass at the nodes; any temperature."""

    def keep(logits: Tensor, seed: int) -> Entries:
        random = torch.Generator().manual_seed(seed)
        uniform = torch.rand(len(logits), generator=random, dtype=torch.float64).to(logits.device)
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        kept = keep_targets(logits, labels, layout, uniform)
        return Entries(kept.ids, kept.values, kept.log_mass)

    def aim(kept: Entries, _logits: Tensor, temperature: float, both: Both, head: Tensor) -> Target:
        assert kept.log_mass is not None
        weights = estimate.target_weights(kept.values, kept.log_mass, layout, temperature)
        entropy = estimate.entropy(kept.values, kept.log_mass, layout, temperature)
        cross = -(weights * both.log_q.gather(1, kept.ids)).sum(-1)
        return Target(sparse_product(kept.ids, weights, head), torch.ones_like(cross), cross - entropy)

    proposal = " + ".join(f"{share:g} at {t:.3g}" for t, share in layout.proposal)
    sizes = {"top_k": layout.top_k, "samples": layout.samples, "proposal": proposal}
    return Scheme(name, keep, aim, lambda kept, _logits: packed_bytes(kept, layout), random=True, **sizes)


def top(kind: str, k: int) -> Scheme:
    """The k largest logits; the rest renormalised away, dropped, one bucket, or spread evenly. Biased."""

    def keep(logits: Tensor, _seed: int) -> Entries:
        values, ids = logits.topk(k, dim=-1)
        return Entries(ids, values.float())

    def aim(kept: Entries, logits: Tensor, temperature: float, both: Both, head: Tensor) -> Target:
        log_p = kept.values / temperature - both.log_z[:, None]
        p, log_q = log_p.exp(), both.log_q.gather(1, kept.ids)
        mass = p.sum(-1, keepdim=True)
        kept_kl = (p * (log_p - log_q)).sum(-1)
        rest = (1 - mass.squeeze(1)).clamp(min=1e-12)
        one = torch.ones_like(rest)
        if kind == "renormalised":
            kl = kept_kl / mass.squeeze(1) - mass.squeeze(1).log()
            return Target(sparse_product(kept.ids, p / mass, head), one, kl)
        if kind == "dropped":
            return Target(sparse_product(kept.ids, p, head), mass.squeeze(1), kept_kl)
        if kind == "uniform":
            even = rest / (logits.shape[1] - k)
            projected = sparse_product(kept.ids, p - even[:, None], head) + even[:, None] * head.sum(0)
            others = both.log_q.sum(-1) - log_q.sum(-1)
            return Target(projected, one, kept_kl + rest * even.log() - even * others)
        q_rest = -torch.expm1(log_q.logsumexp(-1).clamp(max=-1e-7))
        ratio = (rest / q_rest)[:, None]
        projected = ratio * both.q_projected + sparse_product(kept.ids, p - ratio * log_q.exp(), head)
        return Target(projected, one, kept_kl + rest * (rest.log() - q_rest.log()))

    def size(kept: Entries, _logits: Tensor) -> float:
        return _bytes_of((kept.ids, np.uint32), (kept.values, np.float16))

    return Scheme(f"top-{k}, {kind}", keep, aim, size, random=False, top_k=k)


def draws(kind: str, count: int) -> Scheme:
    """`count` independent draws from p at T = 1: their counts at every T, or reweighted to T from their logits."""

    def keep(logits: Tensor, seed: int) -> Entries:
        random = torch.Generator(logits.device).manual_seed(seed)
        drawn = torch.multinomial(torch.softmax(logits.float(), -1), count, replacement=True, generator=random)
        ordered = drawn.sort(dim=-1).values
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        counts = (ordered[:, :, None] == ordered[:, None, :]).sum(-1) * first
        counts, order = counts.sort(dim=-1, descending=True, stable=True)
        return Entries(ordered.gather(1, order).masked_fill(counts == 0, 0), counts.float())

    def aim(kept: Entries, logits: Tensor, temperature: float, both: Both, head: Tensor) -> Target:
        weights = kept.values
        if kind == "reweighted":
            z = logits.gather(1, kept.ids).float()
            tilt = (z * (1 / temperature - 1)).masked_fill(kept.values == 0, -torch.inf)
            weights = kept.values * torch.exp(tilt - tilt.amax(-1, keepdim=True))
        weights = weights / weights.sum(-1, keepdim=True)
        log_q = both.log_q.gather(1, kept.ids)
        kl = torch.special.entr(weights).neg().sum(-1) - (weights * log_q).sum(-1)
        return Target(sparse_product(kept.ids, weights, head), torch.ones_like(kl), kl)

    def size(kept: Entries, logits: Tensor) -> float:
        counted = _bytes_of((kept.ids, np.uint32), (kept.values, np.uint16))
        return counted if kind == "counts" else counted + _bytes_of((_at(logits, kept), np.float16))

    return Scheme(f"{count} draws at T=1, {kind}", keep, aim, size, random=True, samples=count, proposal="1 at 1")


def sparse_product(ids: Tensor, weights: Tensor, head: Tensor) -> Tensor:
    """`sum_k weights[:, k] head[ids[:, k]]`, (n, d)."""
    return torch.nn.functional.embedding_bag(ids, head, per_sample_weights=weights, mode="sum")


def packed_bytes(kept: Entries, layout: TargetLayout) -> float:
    """Bytes of a chunk's positions as a cache has them: used entries one behind the other, log-mass in steps by column.

    Without the chunk's checksum and its place in the shard's index, 20 bytes.
    """
    assert kept.log_mass is not None
    ids, values = kept.ids.cpu().numpy().astype(np.uint32), kept.values.cpu().numpy().astype(layout.value_dtype)
    used = values != -np.inf
    steps = np.round(kept.log_mass.cpu().numpy().astype(np.float64) / layout.log_mass_step).astype(np.int32)
    numbers = np.concatenate([used.sum(-1, keepdims=True), second_differences(steps)], axis=-1).astype(np.int32)
    together = [np.zeros(array.size, array.dtype) for array in (ids, values)]
    for whole, array in zip(together, (ids, values), strict=True):
        whole[: used.sum()] = array[used]
    paged = [(whole, PAGE_NUMBERS) for whole in together] + [(numbers.T.reshape(-1), len(numbers))]
    return sum(len(PCodec(level=8, equal_pages_up_to=page).encode(array)) for array, page in paged)


def _bytes_of(*arrays: tuple[Tensor, type[np.generic]]) -> float:
    """Bytes of whole arrays in these types."""
    return sum(smallest(array.cpu().numpy().astype(dtype)) for array, dtype in arrays)


def _at(logits: Tensor, kept: Entries) -> Tensor:
    return logits.gather(1, kept.ids).float().masked_fill(kept.values == 0, 0.0)


def smallest(array: NDArray[np.generic]) -> int:
    """Bytes after the better of pcodec and zstd with shuffled bytes, chunk by chunk."""
    pcodec = zstd = 0
    for start in range(0, len(array), CHUNK):
        chunk = np.ascontiguousarray(array[start : start + CHUNK]).reshape(-1)
        pcodec += len(standalone.simple_compress(chunk, ChunkConfig(compression_level=8)))
        planes = chunk.view(np.uint8).reshape(-1, chunk.itemsize).T
        zstd += len(Zstd(level=12).encode(np.ascontiguousarray(planes).tobytes()))
    return min(pcodec, zstd)
