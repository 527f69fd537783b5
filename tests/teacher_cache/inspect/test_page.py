"""What the page is made of, without a browser: entries, bounds, curves, markup, and the file itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from delta_common.errors import UserError
from teacher_cache import Cache, open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.inspect.curves import spread_rows, temperature_curves
from teacher_cache.inspect.entries import Entries, fold, highest_unkept_logit, next_logits, row_entries
from teacher_cache.inspect.page import write_page
from teacher_cache.inspect.tokens import token_data
from teacher_cache.targets import estimate
from tests.helpers.layouts import keep, layout, zipf_logits

VOCAB = 500


def entries_of(top_k: int, samples: int) -> tuple[Entries, torch.Tensor]:
    """Kept entries of 200 distributions, and all their logits relative to the largest."""
    logits, kept_layout = zipf_logits(200, VOCAB), layout(top_k, samples)
    kept = keep(logits, kept_layout)
    entries = Entries(kept.ids.long(), kept.values, kept.log_mass, kept_layout)
    return entries, logits - logits.amax(-1, keepdim=True)


@pytest.mark.parametrize(("top_k", "samples"), [(8, 0), (4, 12), (4, 40)])
def test_no_token_that_was_not_kept_is_above_the_bound(top_k: int, samples: int) -> None:
    entries, logits = entries_of(top_k, samples)
    used = entries.values > -torch.inf
    kept = torch.zeros(len(logits), VOCAB + 1, dtype=torch.bool)
    kept.scatter_(1, torch.where(used, entries.ids, VOCAB), True)
    highest = logits.masked_fill(kept[:, :VOCAB], -torch.inf).amax(-1)
    bound = highest_unkept_logit(entries)
    assert (highest <= bound + 1e-4).all()
    smallest_certain = entries.values[:, top_k - 1] - entries.values[:, 0]
    assert (bound <= smallest_certain).all()
    if samples:
        assert (bound < smallest_certain - 0.1).any()


def test_the_next_tokens_logit_is_known_where_it_was_kept() -> None:
    entries, logits = entries_of(4, 12)
    following = torch.full((len(logits),), 7)
    found = next_logits(entries, following)
    kept = ((entries.ids == 7) & (entries.values > -torch.inf)).any(-1)
    torch.testing.assert_close(found[kept], logits[kept, 7])
    assert found[~kept].isnan().all()
    assert kept.any()
    assert not kept.all()


@pytest.mark.parametrize("samples", [0, 12])
def test_folding_keeps_the_distribution(samples: int) -> None:
    entries, _ = entries_of(40, samples)
    folded = fold(entries, 10)
    assert folded.layout.top_k == 10
    assert folded.ids.shape[-1] == 10 + samples
    for temperature in (1.0, 1.37, 2.0):
        one, other = (estimate.log_partition(e.values, e.log_mass, e.layout, temperature) for e in (entries, folded))
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)
    weights = [estimate.target_weights(e.values, e.log_mass, e.layout, 1.0) for e in (entries, folded)]
    torch.testing.assert_close(weights[0][:, 40:], weights[1][:, 10:], atol=1e-5, rtol=1e-3)


SIZES: dict[str, Any] = {"rows": 22, "seq_len": 40, "vocab_size": 300, "hidden_size": 16, "rows_per_shard": 4}


@pytest.fixture(scope="module", params=["sparse", "exact"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("page") / request.param
    kept = {"top_k": 6, "samples": 20} if request.param == "sparse" else {"top_k": 1}
    return open_cache(make_synthetic_cache(folder, **SIZES, **kept, mode=request.param))


def test_curves_are_means_of_what_the_reader_gives(cache: Cache) -> None:
    curves = temperature_curves(cache)
    assert curves is not None
    assert (curves.rows, curves.positions) == (16, 16 * 40)
    rows = spread_rows(cache, 16)
    for at in (0, 17, 40):
        targets = cache.targets(rows, temperature=float(curves.temperatures[at]))
        assert curves.entropy.mean[at] == pytest.approx(targets.entropy.mean(), abs=2e-3)
        assert curves.entropy.low[at] < curves.entropy.mean[at] < curves.entropy.high[at]
        if curves.retained_mass is not None:
            assert curves.retained_mass.mean[at] == pytest.approx(targets.probabilities.sum(-1).mean(), rel=1e-3)
    assert (curves.retained_mass is None) == (cache.layout.mode == "exact")


def test_rows_are_spread_over_the_shards_that_are_there(cache: Cache) -> None:
    assert spread_rows(cache, 4) == [0, 7, 14, 21]
    part = Cache(cache.store, cache.manifest, {shard: cache.commits[shard] for shard in (1, 5)})
    assert spread_rows(part, 100) == [4, 5, 6, 7, 20, 21]
    assert spread_rows(Cache(cache.store, cache.manifest, {}), 4) == []


def test_rows_of_an_unfinished_cache_are_shown_as_far_as_they_are_there(cache: Cache, tmp_path: Path) -> None:
    part = Cache(cache.store, cache.manifest, {1: cache.commits[1]})
    assert [row["row"] for row in token_data(part, None, None).json["rows"]] == [4, 5, 6, 7]
    with pytest.raises(UserError, match="--rows 0: its shard is not built yet"):
        token_data(part, [0], None)
    said = write_page(part, tmp_path / "part.html", None, None)
    assert said.startswith(str(tmp_path / "part.html"))


def test_masked_positions_have_no_distribution(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cache[0]
    masked = np.arange(40) < 30
    monkeypatch.setattr(Cache, "__getitem__", lambda self, row: type(whole)(**{**vars(whole), "loss_mask": masked}))
    positions = token_data(cache, [0], (20, 40)).json["rows"][0]["positions"]
    assert [position is not None for position in positions] == [True] * 10 + [False] * 10


def test_what_is_left_out_is_said(cache: Cache) -> None:
    cut = token_data(cache, [2], (3, 9)).cut
    assert cut[0] == "1 of 22 rows (others: --rows A,B)"
    assert cut[1] == "positions 3 to 8 of 40 (others: --tokens A:B)"
    assert len(cut) == (3 if cache.layout.mode == "exact" else 2)


def test_an_exact_row_holds_the_whole_vocabulary(cache: Cache) -> None:
    entries = row_entries(cache, 3)
    width = 300 if cache.layout.mode == "exact" else 26
    assert entries.ids.shape == (40, width)
    assert torch.isfinite(entries.values[:, 0]).all()


def test_the_page_is_written_whole_or_not_at_all(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "sub" / "report.html"
    write_page(cache, path, None, None)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert path.stat().st_size < 3 * 2**20
    with pytest.raises(UserError, match=r"--html .*sub: cannot be written \(Is a directory\); choose another file"):
        write_page(cache, path.parent, None, None)
    with pytest.raises(UserError, match="cannot be written"):
        write_page(cache, path / "below.html", None, None)
