"""Whether the values of a cache are possible: every array of every shard is decoded and held to docs/format.md."""

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from teacher_cache.format.arrays import LOG_MASS_FLOOR, ROLES
from teacher_cache.format.errors import CacheError
from teacher_cache.format.manifest import Manifest
from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.read.decode import CachedRows
from teacher_cache.store.base import Store
from teacher_cache.targets.estimate import log_rest
from teacher_cache.verify.objects import Fault, Findings, verify

SHIFTS = (-1, 0, 1)
MASS_TOLERANCE = 1e-3
"""Relative, beside the step that log-mass is rounded to: sums of it are in float32."""


def verify_bytes_and_content(store: Store) -> Findings:
    """Check the bytes of every object and, where all are sound, the values they decode to."""
    started = time.monotonic()
    findings = verify(store)
    if findings.is_sound:
        verify_content(open_cache(store.path, check_digests=False), findings)
    findings.seconds = time.monotonic() - started
    return findings


def verify_content(cache: Cache, findings: Findings) -> None:
    """Decode the whole cache and add what is wrong with its values to `findings`; its bytes are taken to be sound."""
    alignment = _Alignment()
    for shard, rows in zip(sorted(cache.commits), cache.shards, strict=True):
        try:
            problems = list(_shard_problems(cache, shard, rows, alignment))
        except CacheError as error:
            problems = [str(error)]
        findings.faults += [Fault("content", f"shard {shard}", shard, problem) for problem in problems]
    if alignment.counted[0]:
        findings.measures["alignment"] = alignment.agreement()
        if alignment.is_off():
            words = ", ".join(f"{value:.3f} at {shift:+d}" for shift, value in alignment.agreement().items())
            findings.faults.append(
                Fault("content", "logits/ids", None, f"targets do not line up with tokens: agreement is {words}")
            )


def _shard_problems(cache: Cache, shard: int, rows: range, alignment: "_Alignment") -> Iterator[str]:
    step = cache.manifest.rows.rows_per_chunk
    positions = entries = agreed = 0
    for first in range(rows.start, rows.stop, step):
        found = cache.rows(range(first, min(first + step, rows.stop)))
        for problem in row_problems(found, cache.manifest):
            yield f"rows {first} to {min(first + step, rows.stop) - 1}: {problem}"
        positions += int(found.loss_mask.sum())
        if found.ids is not None and found.values is not None:
            entries += int((found.values[found.loss_mask] > -np.inf).sum())
            agreed += alignment.add(found)
    record = cache.commits[shard]
    counted: dict[str, tuple[int, float]] = {"positions": (positions, record.positions)}
    if cache.manifest.targets.mode == "sparse":
        counted["entries"] = (entries, record.statistics["entries"])
        counted["agreement"] = (agreed, record.statistics["agreement"])
    for name, (here, recorded) in counted.items():
        if here != recorded:
            yield f"{name} add up to {here}, the commit record says {recorded:g}"


def row_problems(rows: CachedRows, manifest: Manifest) -> Iterator[str]:
    """What contradicts docs/format.md in these rows, one sentence for each kind of problem."""
    mask, vocab = rows.loss_mask, manifest.vocab_size
    if rows.tokens.max() >= manifest.padded_vocab_size:
        yield f"tokens: {rows.tokens.max()} is outside the vocabulary of {manifest.padded_vocab_size}"
    for name in ("ids", "values", "log_mass", "final_hidden"):
        array = getattr(rows, name)
        if array is not None and array[~mask].any():
            yield f"{name}: not zero where loss_mask is false"
    if rows.role is not None:
        yield from _role_problems(rows.role, mask, manifest)
    for name in ("final_hidden", "hidden_mean"):
        array = getattr(rows, name)
        if array is not None and not np.isfinite(array).all():
            yield f"{name}: not finite"
    if rows.ids is not None and rows.values is not None and rows.log_mass is not None and mask.any():
        yield from _entry_problems(rows.ids[mask], rows.values[mask], manifest, vocab)
        yield from _mass_problems(rows.values[mask], rows.log_mass[mask], manifest)


def _role_problems(role: NDArray[np.uint8], mask: NDArray[np.bool_], manifest: Manifest) -> Iterator[str]:
    """Problems of whose tokens labels are, (n, T)."""
    layout = manifest.rows.conversations
    if role.max() >= len(ROLES):
        yield f"role: {role.max()} is none of the {len(ROLES)} roles"
    if (mask & (role == ROLES.index("padding"))).any():
        yield "role: padding counts"
    others = mask & ~np.isin(role, [ROLES.index("assistant"), ROLES.index("template")])
    if layout is not None and layout.loss_on != "all" and others.any():
        yield f"role: counts what others than the assistant say, of answers alone ({layout.loss_on})"


def _entry_problems(
    ids: NDArray[np.uint32], values: NDArray[np.float32], manifest: Manifest, vocab: int
) -> Iterator[str]:
    """Problems of ids and values, (n, K), of counted positions."""
    top_k = manifest.top_k
    used = values > -np.inf
    if ids.max() >= vocab:
        yield f"ids: {ids.max()} is outside the vocabulary of {vocab}"
    if not np.isfinite(values[:, :top_k]).all() or np.isnan(values).any() or np.isposinf(values).any():
        yield "values: not finite"
    if (used[:, 1:] > used[:, :-1]).any() or ids[~used].any():
        yield "values: an unused place is in front of a used one or has an id"
    for part in (values[:, :top_k], values[:, top_k:]):
        if (part[:, 1:] > part[:, :-1]).any():
            yield "values: not in falling order"
    if top_k < values.shape[1] and (values[:, top_k:].max(1) > values[:, top_k - 1]).any():
        yield "values: a sampled logit is above the top_k"
    distinct = np.sort(np.where(used, ids.astype(np.int64), -1 - np.arange(ids.shape[1])), axis=1)
    if (distinct[:, 1:] == distinct[:, :-1]).any():
        yield "ids: a token is kept twice"


def _mass_problems(values: NDArray[np.float32], log_mass: NDArray[np.float32], manifest: Manifest) -> Iterator[str]:
    """Problems of values (n, K) and log_mass (n, J) of counted positions."""
    if not np.isfinite(log_mass).all():
        yield "log_mass: not finite"
        return
    step = manifest.targets.log_mass_step
    steps = log_mass.astype(np.float64) / step
    if (steps != np.round(steps)).any() or (log_mass < LOG_MASS_FLOOR).any():
        yield f"log_mass: not a multiple of {step:g} above {LOG_MASS_FLOOR:g}"
    if (np.diff(log_mass, axis=1) > step).any() or (log_mass > math.log(manifest.vocab_size) + 1e-3).any():
        yield "log_mass: rises with 1/T, or is above that of a uniform distribution"
    relative = torch.from_numpy(values[:, manifest.top_k :] - values[:, :1]).double()
    for temperature in manifest.node_temperatures:
        drawn = torch.exp(relative / temperature).sum(-1)
        rest = torch.exp(log_rest(torch.from_numpy(log_mass).double(), manifest.targets, temperature))
        if bool((drawn > rest * (1 + MASS_TOLERANCE + step) + 1e-12).any()):
            yield f"log_mass: at T = {temperature:g} the sampled entries alone have more mass"


class _Alignment:
    """How often the teacher's first choice is the next token, and how often the token before or after that one."""

    def __init__(self) -> None:
        self.counted = dict.fromkeys(SHIFTS, 0)
        self.agreed = dict.fromkeys(SHIFTS, 0)

    def add(self, rows: CachedRows) -> int:
        """Count these rows in; return how many first choices in them are the next token."""
        assert rows.ids is not None
        first, mask, length = rows.ids[..., 0], rows.loss_mask, rows.loss_mask.shape[1]
        for shift in SHIFTS:
            stop = min(length, length - shift)
            labels = rows.tokens[:, 1 + shift : 1 + shift + stop]
            agreed = (first[:, :stop] == labels) & mask[:, :stop]
            self.counted[shift] += int(mask[:, :stop].sum())
            self.agreed[shift] += int(agreed.sum())
        return int(((first == rows.tokens[:, 1:]) & mask).sum())

    def agreement(self) -> dict[int, float]:
        return {shift: self.agreed[shift] / max(1, self.counted[shift]) for shift in SHIFTS}

    def is_off(self) -> bool:
        """Whether another shift agrees better than none, by more than 4 standard errors."""
        rates = self.agreement()
        spread = math.sqrt(max(rates.values()) / max(1, self.counted[0]))
        return max(rates[-1], rates[1]) > rates[0] + 4 * spread
