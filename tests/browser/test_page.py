"""The page of `inspect --html` in a browser: its numbers, keys and colours, and text that would like to act."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teacher_cache import Cache, open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.inspect import tokens
from teacher_cache.inspect.page import write_page

Open = Callable[..., Any]

ROW = 1
EACH_KIND = pytest.mark.parametrize("cache", ["top", "sampled", "exact"], indirect=True)
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "\"'><svg onload=alert(3)>",
    "\u2028\u2029\u202eright to left\u202c",
    "]]><!--",
    "\ufffd\x00\x1b[31m",
    "&lt;b&gt; $script ${data}",
    "<a href='javascript:alert(4)'>",
]


@EACH_KIND
def test_it_asks_for_nothing_and_complains_of_nothing(visit: Open, page_file: Path) -> None:
    seen = visit(page_file)
    assert seen.page.locator(".tokens .token").count() == 2 * 25
    seen.set_temperature(1.7)
    seen.focus(30)
    assert seen.requests == [page_file.as_uri()]
    assert seen.complaints == []


def test_its_policy_forbids_what_others_would_add(visit: Open, page_file: Path) -> None:
    seen = visit(page_file)
    seen.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
            document.body.append(Object.assign(new Image(), { src: "https://example.org/pixel.png" }));
        }"""
    )
    assert seen.page.evaluate("window.ran") is None
    assert len(seen.complaints) == 2
    assert all("Content Security Policy" in complaint for complaint in seen.complaints)


@EACH_KIND
@pytest.mark.parametrize("temperature", [1.0, 1.3, 1.87, 2.0])
def test_the_slider_gives_what_the_reader_gives(visit: Open, page_file: Path, cache: Cache, temperature: float) -> None:
    seen, targets = visit(page_file), cache.targets([ROW], temperature=temperature)
    seen.set_temperature(temperature)
    assert seen.page.locator("#chosen").inner_text() == f"T = {temperature:.2f}"
    tokens = cache[ROW].tokens
    certain = cache.manifest.vocab_size if cache.layout.mode == "exact" else cache.layout.top_k
    for t in (0, 7, 23):
        seen.focus(t + 1)
        chances = targets.probabilities[0, t]
        np.testing.assert_allclose(seen.numbers(".choices tbody data"), chances[: min(certain, 12)], rtol=1e-3)
        *_, outside, entropy = seen.numbers(".choices + .rest data")
        assert outside == pytest.approx(1 - chances[: min(certain, 48)].sum(), abs=1e-3)
        assert entropy == pytest.approx(targets.entropy[0, t], abs=2e-3)
        drawn = targets.values[0, t, certain:] > -np.inf
        shown = np.reshape(seen.numbers(".sampled tbody data"), (-1, 3))
        np.testing.assert_allclose(shown[:, 0], chances[certain:][drawn], rtol=1e-3)
        np.testing.assert_allclose(shown[:, 2], targets.weights[0, t, certain:][drawn], rtol=1e-3)
        kept = (targets.ids[0, t] == tokens[t + 1]) & (targets.values[0, t] > -np.inf)
        chance, surprise = seen.numbers("#headline data")
        assert surprise == pytest.approx(-np.log(chance), rel=1e-6)
        if kept.any():
            assert chance == pytest.approx(chances[kept][0], rel=1e-3)


@EACH_KIND
def test_a_token_that_was_not_kept_says_so(visit: Open, page_file: Path, cache: Cache) -> None:
    seen = visit(page_file)
    rows = cache.rows([ROW])
    if rows.ids is None:
        assert seen.page.locator(".tokens .bound").count() == 0
        return
    kept = ((rows.ids[0] == rows.tokens[0, 1:, None]) & (rows.values[0] > -np.inf)).any(-1)
    marked = seen.page.eval_on_selector_all(
        ".row:first-child .token", "found => found.map(e => e.classList.contains('bound'))"
    )
    assert marked == [False, *(~kept).tolist()]
    assert not kept.all()
    seen.focus(int(np.flatnonzero(~kept)[0]) + 1)
    assert "was not kept: at most" in seen.page.locator("#headline").inner_text()
    chance = seen.numbers("#headline data")[0]
    certain = cache.targets([ROW], temperature=1.0).probabilities[0, np.flatnonzero(~kept)[0], : cache.layout.top_k]
    assert 0 < chance <= 1 - certain.sum() + 1e-3


def test_arrow_keys_move_and_the_panel_follows(visit: Open, page_file: Path) -> None:
    seen = visit(page_file, viewport={"width": 700, "height": 900})
    place = "[...document.querySelectorAll('.tokens .token')].indexOf(document.activeElement)"

    def press(key: str) -> int:
        seen.page.keyboard.press(key)
        found: int = seen.page.evaluate(place)
        return found

    for _ in range(20):
        seen.page.keyboard.press("Tab")
        if seen.page.evaluate(place) >= 0:
            break
    assert seen.page.evaluate(place) == 1
    before = seen.page.locator("#panel").inner_text()
    assert press("ArrowRight") == 2
    assert seen.page.locator("#panel").inner_text() != before
    assert seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert press("ArrowLeft") == 1
    below = press("ArrowDown")
    assert below > 3
    assert press("ArrowUp") == 1
    assert press("End") == 24
    assert press("ArrowRight") == 25
    assert press("End") == 49
    assert press("ArrowRight") == 49
    assert press("Home") == 25
    assert seen.page.locator(".token[tabindex='0']").count() == 1
    assert seen.page.locator("[aria-selected='true']").count() == 1


def test_pointing_shows_and_leaving_returns(visit: Open, page_file: Path) -> None:
    seen = visit(page_file)
    at_first = seen.page.locator("#panel").inner_text()
    seen.page.locator(".tokens .token").nth(9).hover()
    assert seen.page.locator("#panel").inner_text() != at_first
    seen.page.locator("h1").hover()
    assert seen.page.locator("#panel").inner_text() == at_first


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(visit: Open, page_file: Path, scheme: str) -> None:
    seen = visit(page_file, color_scheme=scheme)
    seen.focus(5)
    contrasts = seen.contrasts()
    assert len(contrasts) > 100
    assert [words for ratio, words in contrasts if ratio < 4.5] == []


def test_dark_is_dark(visit: Open, page_file: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    light, dark = (visit(page_file, color_scheme=scheme).page.evaluate(ground) for scheme in ("light", "dark"))
    assert min(light) > 240
    assert max(dark) < 40


def test_on_paper_everything_is_there_in_black_on_white(visit: Open, page_file: Path) -> None:
    seen = visit(page_file, color_scheme="dark", viewport={"width": 680, "height": 960})
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 680
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not seen.page.locator("#temperature").is_visible()
    assert seen.page.locator("#chosen").inner_text() == "T = 1.00"
    for selector in (".tokens", "#panel", ".charts svg", "table.drawn", "h1"):
        assert seen.page.locator(selector).first.is_visible(), selector
    clipped = (
        "[...document.querySelectorAll('.scroll, #panel')].filter(e => e.scrollHeight > e.clientHeight + 3).length"
    )
    assert seen.page.evaluate(clipped) == 0
    assert min(ratio for ratio, _ in seen.contrasts()) >= 4.5


@pytest.mark.parametrize("width", [400, 1200])
def test_it_fits_its_window(visit: Open, page_file: Path, width: int) -> None:
    seen = visit(page_file, viewport={"width": width, "height": 860})
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width


def test_it_says_what_a_reader_without_eyes_needs(visit: Open, page_file: Path) -> None:
    seen = visit(page_file)
    assert seen.page.locator("html").get_attribute("lang") == "en"
    for landmark in ("header", "main", "aside"):
        assert seen.page.locator(landmark).count() == 1
    assert seen.page.get_by_role("slider", name="Temperature").count() == 1
    assert seen.page.get_by_role("listbox", name="Tokens").get_by_role("option").count() == 50
    without = "[...document.querySelectorAll('table')].filter(t => !t.caption || !t.caption.textContent).length"
    assert seen.page.evaluate(without) == 0
    assert seen.page.eval_on_selector_all("svg[role=img]", "all => all.every(e => e.getAttribute('aria-label'))")


def test_text_of_a_corpus_is_shown_and_runs_nothing(
    visit: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_cache(make_synthetic_cache(tmp_path / "cache", rows=2, seq_len=40, vocab_size=64, top_k=8, samples=8))
    named = made.manifest.model_copy(
        update={
            "teacher": made.manifest.teacher.model_copy(update={"name": HOSTILE[0]}),
            "corpus": {"source": HOSTILE[1] + HOSTILE[3]},
        }
    )
    monkeypatch.setattr(tokens, "token_decoder", lambda _: lambda token: HOSTILE[token % len(HOSTILE)])
    path = tmp_path / "report.html"
    write_page(Cache(made.store, named, made.commits), path, None, None)
    seen = visit(path)
    for token in (3, 40, 60):
        seen.focus(token)
    assert seen.complaints == []
    assert seen.requests == [path.as_uri()]
    assert seen.page.locator("h1").inner_text() == HOSTILE[0]
    assert seen.page.locator("script").count() == 2
    assert seen.page.locator("main img, main a, main svg[onload]").count() == 0
    shown = seen.page.eval_on_selector_all(".tokens .token", "found => found.map(e => e.textContent)")
    assert shown[5] == tokens.running_text(HOSTILE[int(made[0].tokens[5]) % len(HOSTILE)])
    assert any("⟨U+202E⟩right to left" in text for text in shown)
    assert not any(character in "".join(shown) for character in "\u202e\u2028\x00\x1b")
    assert "\u202e" not in path.read_text(encoding="utf-8")


@EACH_KIND
def test_a_cache_with_nothing_in_it_yet_has_a_page_too(visit: Open, cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    write_page(Cache(cache.store, cache.manifest, {}), path, None, None)
    seen = visit(path)
    assert seen.complaints == []
    assert "No row is built yet." in seen.page.locator("main").inner_text()
    seen.set_temperature(1.5)
    assert seen.page.locator("#chosen").inner_text() == "T = 1.50"


def test_shards_that_stand_out_are_marked(visit: Open, cache: Cache, tmp_path: Path) -> None:
    strange = cache.commits[2]
    statistics = {**strange.statistics, "cross_entropy": strange.positions * 40.0}
    commits = {**cache.commits, 2: strange.model_copy(update={"statistics": statistics})}
    path = tmp_path / "strange.html"
    write_page(Cache(cache.store, cache.manifest, commits), path, None, None)
    seen = visit(path)
    assert seen.page.locator("circle.unusual title").first.text_content() == "shard 2: 40.000 nats"
    listed = seen.page.locator("ul.unusual").inner_text()
    assert "shard 2 (rows 8 to 11): cross-entropy of the text 40.000 nats, where shards usually have" in listed


@EACH_KIND
def test_what_is_embedded_is_what_is_stored(page_file: Path, cache: Cache) -> None:
    text = page_file.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    embedded = json.loads(text[start : text.index("</script>", start)])
    assert embedded["rows"][0]["tokens"] == cache[ROW].tokens.tolist()
    assert embedded["nodes"] == list(cache.layout.node_temperatures)
