"""The summary counts what is on disk, and says how much is kept and how well it estimates."""

import json

import numpy as np
import pytest
from rich.console import Console

from teacher_cache import Cache
from teacher_cache.format.nodes import node_temperatures
from teacher_cache.inspect.summary import corpus_words, identity_facts, render_summary, summarize


def test_the_summary_counts_what_is_on_disk_and_is_json(cache: Cache) -> None:
    summary = json.loads(json.dumps(summarize(cache)))
    on_disk = sum(
        p.stat().st_size for p in cache.path.rglob("*") if p.is_file() and "c" in p.relative_to(cache.path).parts
    )
    assert summary["bytes"] == on_disk
    assert summary["bytes_per_token"] == pytest.approx(on_disk / 120)
    assert summary["shards"] == {"done": 3, "planned": 3}
    assert all(array["ratio"] > 0 for array in summary["arrays"].values())


def test_the_summary_says_how_much_is_kept_and_how_well_it_estimates(cache: Cache) -> None:
    summary, targets = summarize(cache), cache.manifest.targets
    if targets.mode == "exact":
        assert not any(summary["retained_mass"].values())
        return
    rows = cache.rows(range(10))
    assert rows.values is not None
    assert summary["entries"]["mean"] == pytest.approx((rows.values > -np.inf).sum(-1).mean())
    masses = list(summary["retained_mass"].values())
    assert masses == sorted(masses, reverse=True)
    probabilities = cache.targets(range(10), temperature=1.5).probabilities
    assert summary["retained_mass"]["1.5"] == pytest.approx(probabilities.sum(-1).mean(), rel=1e-4)
    effective = summary["effective_samples"]["2"]
    assert effective is None if not targets.samples else 1 < effective < 200


def test_entropy_and_cross_entropy_agree_with_the_source_that_was_sampled(cache: Cache) -> None:
    """Tokens are drawn from the cached distributions, so in the mean both are the same but for 120 tokens' noise."""
    summary = summarize(cache)
    assert abs(summary["cross_entropy"] - summary["entropy"]["1"]) < 1.0


def test_tables_name_teacher_size_and_arrays(cache: Cache) -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render_summary(summarize(cache)))
    words = captured.get()
    assert "synthetic" in words
    assert "10 of 10" in words
    assert all(name in words for name in summarize(cache)["arrays"])


@pytest.mark.parametrize(
    ("cross_entropy", "words"), [(1.0, "2.7)"), (20.0, "4.85e+08)"), (709.0, "8.22e+307)"), (1e4, "inf)")]
)
def test_a_perplexity_of_any_size_is_shown(cross_entropy: float, words: str, cache: Cache) -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render_summary({**summarize(cache), "cross_entropy": cross_entropy}))
    assert f"(perplexity {words}" in captured.get()


def test_an_empty_cache_has_a_summary(cache: Cache) -> None:
    empty = Cache(cache.store, cache.manifest, {})
    summary = json.loads(json.dumps(summarize(empty)))
    assert summary["by_shard"] == {}
    assert summary["bytes_per_token"] is None
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render_summary(summary))
    assert "unfinished" in captured.get()


def test_a_corpus_is_named_by_what_is_known_of_it() -> None:
    assert corpus_words({"source": "a/b", "subset": "x", "split": None, "revision": "f00"}) == (
        "a/b, subset x, revision f00"
    )
    assert corpus_words({}) == "?"


def test_targets_that_are_only_about_right_between_nodes_are_said_to_be(cache: Cache) -> None:
    is_exact = cache.manifest.targets.mode == "exact"
    summary = summarize(cache)
    assert summary["expected_error"] == (0.0 if is_exact else 0.002)
    assert "expected error" not in identity_facts(summary)
    wide = cache.layout.model_copy(update={"node_temperatures": node_temperatures(1.0, 20.0, 3)})
    summary = summarize(Cache(cache.store, cache.manifest, cache.commits, wide))
    assert summary["expected_error"] == (0.0 if is_exact else 0.05)
    said = identity_facts(summary).get("expected error", "")
    assert said.startswith("log Z up to about 0.05 nats; right at T = 1, ") != is_exact
