import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from delta_common.errors import UserError
from teacher_cache import Cache, open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.cli import app
from teacher_cache.inspect.rows import render_row, view_row, visible_text
from teacher_cache.inspect.shards import find_outliers, outlier_sentences, shard_figures
from teacher_cache.inspect.summary import render_summary, summarize

SIZES: dict[str, Any] = {"rows": 10, "seq_len": 12, "vocab_size": 300, "hidden_size": 64, "rows_per_shard": 4}
KINDS: dict[str, dict[str, Any]] = {
    "top": {"top_k": 8},
    "sampled": {"top_k": 4, "samples": 12, "hidden": "int8", "hidden_stride": 3},
    "exact": {"top_k": 1, "mode": "exact", "hidden": "none"},
}


@pytest.fixture(scope="module", params=KINDS)
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("inspect") / request.param
    return open_cache(make_synthetic_cache(folder, **SIZES, **KINDS[request.param]))


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


def test_a_row_is_shown_with_the_teachers_first_choices(cache: Cache) -> None:
    views = view_row(cache, 3, 2, 5)
    targets = cache.targets([3], temperature=1.0)
    assert [view.position for view in views] == [2, 3, 4]
    assert views[0].following == views[1].token
    word, chance = views[0].choices[0]
    assert word == f"<{targets.ids[0, 2, 0]}>"
    assert chance == pytest.approx(float(targets.probabilities[0, 2, 0]))
    assert all(0 <= view.remaining_mass <= 1 for view in views)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render_row(views))
    assert word in captured.get()


@pytest.mark.parametrize(
    ("row", "first", "last", "message"),
    [(10, 0, 2, "--row 10: the cache has rows 0 to 9"), (0, 5, 20, "--tokens 5:20"), (0, 3, 3, "--tokens 3:3")],
)
def test_a_row_or_span_that_is_not_there_is_named(cache: Cache, row: int, first: int, last: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        view_row(cache, row, first, last)


def test_text_that_would_act_on_a_terminal_is_named() -> None:
    assert visible_text(" a\n\t\x1b[31m\u202e\u2028é�") == "␣a⏎⇥⟨U+001B⟩[31m⟨U+202E⟩⟨U+2028⟩é�"


def test_a_row_is_shown_as_it_is_where_it_looks_like_markup(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_cache.inspect.rows.token_decoder", lambda _: lambda _: "[/bold]\x1b")
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_row(view_row(cache, 0, 0, 2)))
    assert captured.get().count("[/bold]⟨U+001B⟩") >= 5


def with_statistic(cache: Cache, shard: int, name: str, mean: float) -> Cache:
    commit = cache.commits[shard]
    statistics = {**commit.statistics, name: mean * commit.positions}
    return Cache(
        cache.store, cache.manifest, {**cache.commits, shard: commit.model_copy(update={"statistics": statistics})}
    )


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("inspect") / "shards"
    return open_cache(make_synthetic_cache(folder, **{**SIZES, "rows": 21, "rows_per_shard": 2}, top_k=4))


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


def test_an_empty_cache_has_a_summary(cache: Cache) -> None:
    empty = Cache(cache.store, cache.manifest, {})
    summary = json.loads(json.dumps(summarize(empty)))
    assert summary["by_shard"] == {}
    assert summary["bytes_per_token"] is None
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render_summary(summary))
    assert "unfinished" in captured.get()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "1"], "--rows 1: chooses the rows of a page; give --html"),
        (["--tokens", "0:3"], "--tokens 0:3: belongs to rows"),
        (["--row", "1", "--html", "x.html"], "--row and --html: each shows something else"),
        (["--json", "--html", "x.html"], "--json and --html"),
        (["--html", "x.html", "--rows", "1;2"], "--rows 1;2: expected row numbers"),
        (["--html", "x.html", "--rows", "10"], "--rows 10: the cache has rows 0 to 9"),
        (["--html", "x.html", "--tokens", "5:50"], "--tokens 5:50: a row has positions 0:12"),
    ],
)
def test_options_that_do_not_go_together_are_named(cache: Cache, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        app(["inspect", str(cache.path), *arguments], result_action="return_value", exit_on_error=False)
