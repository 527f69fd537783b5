import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cli_common.errors import UserError
from teacher_cache import Cache, open_cache
from teacher_cache.inspect import render_row, render_summary, summarize, view_row
from teacher_cache.synthetic import make_synthetic_cache

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
