"""Shards that stand out are found by robust deviations, and named by their rows."""

import json

import numpy as np
import pytest
from rich.console import Console

from teacher_cache import Cache
from teacher_cache.inspect.shards import find_outliers, outlier_sentences, shard_figures, shards_to_json
from teacher_cache.inspect.summary import render_summary, summarize


def with_statistic(cache: Cache, shard: int, name: str, mean: float) -> Cache:
    commit = cache.commits[shard]
    statistics = {**commit.statistics, name: mean * commit.positions}
    return Cache(
        cache.store, cache.manifest, {**cache.commits, shard: commit.model_copy(update={"statistics": statistics})}
    )


def test_a_shard_that_stands_out_is_named_by_rows_and_value(many_shards: Cache) -> None:
    assert outlier_sentences(many_shards, shard_figures(many_shards)) == []
    strange = with_statistic(many_shards, 3, "cross_entropy", 40.0)
    summary = json.loads(json.dumps(summarize(strange)))
    assert list(summary["by_shard"]["cross-entropy of the text"]["outliers"]) == ["3"]
    (sentence,) = summary["unusual"]
    assert sentence.startswith(
        "shard 3 (rows 6 to 7): cross-entropy of the text 40.000 nats, where shards usually have "
    )
    console = Console(width=300)
    with console.capture() as captured:
        console.print(render_summary(summary))
    assert sentence in captured.get()


def test_outliers_are_far_from_the_median_in_robust_deviations() -> None:
    values, even = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 100.0]), np.full(6, 10)
    median, deviation, unusual = find_outliers(values, even)
    assert (median, deviation) == (3.5, pytest.approx(1.4826 * 1.5))
    assert unusual == [5]
    assert find_outliers(values[[0, 1, 5]], even[:3])[2] == []
    assert find_outliers(np.array([1.0] * 8 + [1.0001]), np.full(9, 10))[2] == []


def test_a_short_shard_may_be_further_off() -> None:
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 17.0])
    assert find_outliers(values, np.full(6, 100))[2] == [5]
    assert find_outliers(values, np.array([100] * 5 + [10]))[2] == []


def test_figures_are_means_of_the_commit_records(many_shards: Cache) -> None:
    figures = {figure.name: figure for figure in shard_figures(many_shards)}
    commit = many_shards.commits[3]
    nats = commit.statistics["cross_entropy"] / commit.positions
    assert figures["cross-entropy of the text"].values[3] == pytest.approx(nats)
    assert set(figures["positions counted"].values.values()) == {1.0}
    assert 10 not in figures["bytes per token"].values, "the last shard is short"
    said = shards_to_json([figures["cross-entropy of the text"]])["cross-entropy of the text"]
    assert said["lowest"] <= nats <= said["highest"]
    assert shard_figures(Cache(many_shards.store, many_shards.manifest, {})) == []
