"""What training on several caches came to on each, as the summary and the report show it."""

from collections.abc import Mapping, Sequence
from typing import cast

from student.run.files import TrainedCache

LAST_STEPS = 100
"""Steps that means by cache are taken over; fewer where the run has fewer."""

TERMS = {"cross_entropy": "tokens", "kl": "tokens", "frobenius": "rows"}
"""Terms of the loss by cache, and what each is weighed by in a mean over steps."""

OfCache = Mapping[str, float | None]
"""What a line of `metrics.jsonl` says of one cache."""

TRAINED_CACHE_WORDS = ("rows", "share of rows", "passes", "cross-entropy", "KL at T", "F")


def means_by_cache(metrics: Sequence[Mapping[str, object]]) -> list[dict[str, float]]:
    """Means of the terms over the last steps, by cache; a term is missing where no step had it.

    `metrics` are the lines of `metrics.jsonl`. Empty for a run on a single cache.
    """
    steps = [cast("list[OfCache]", line["by_cache"]) for line in metrics[-LAST_STEPS:] if line.get("by_cache")]
    return [_means(of_one) for of_one in zip(*steps, strict=True)]


def _means(steps: Sequence[OfCache]) -> dict[str, float]:
    means = {}
    for term, weight in TERMS.items():
        values = ((step[term], step[weight]) for step in steps)
        known = [(value, count) for value, count in values if value is not None and count is not None]
        if known:
            means[term] = sum(value * count for value, count in known) / sum(count for _, count in known)
    return means


def cells_by_cache(caches: Sequence[TrainedCache], means: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """For each cache the cells under `TRAINED_CACHE_WORDS`."""
    return [
        [
            f"{cache.rows:,}",
            f"{cache.share:.2%}",
            f"{cache.passes:.2f}",
            *(f"{found[term]:.4f}" if term in found else "–" for term in TERMS),
        ]
        for cache, found in zip(caches, means or [{}] * len(caches), strict=True)
    ]
