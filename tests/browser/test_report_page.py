"""The page of student-report in a browser: curves read by key and pointer, colours, paper, text that would act."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from student.report.charts import LEFT, RIGHT, WIDTH
from student.report.page import write_report
from student.run.files import RunFiles
from tests.helpers.made_runs import NAMES, STEPS, a_run, a_run_on_two_caches
from tests.helpers.small_training import small_settings

Open = Callable[..., Any]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202e$data"


@pytest.fixture
def pages(tmp_path: Path) -> dict[str, Path]:
    """Of one run, and of three, of which one has not finished."""
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", factor=2), a_run(tmp_path / "c", steps=25, finished=False)]
    found = {"one": tmp_path / "one.html", "three": tmp_path / "three.html"}
    write_report(runs[:1], found["one"])
    write_report(runs, found["three"])
    return found


EACH = pytest.mark.parametrize("page", ["one", "three"])


@EACH
def test_it_asks_for_nothing_and_complains_of_nothing(visit: Open, pages: dict[str, Path], page: str) -> None:
    seen = visit(pages[page])
    charts = seen.page.locator("figure[data-chart]")
    assert charts.count() == len(NAMES) + 3 + 2
    charts.first.locator("svg").hover()
    seen.page.keyboard.press("Tab")
    assert seen.requests == [pages[page].as_uri()]
    assert seen.complaints == []


def test_every_curve_runs_through_its_values(visit: Open, pages: dict[str, Path]) -> None:
    seen = visit(pages["three"])
    for number in range(len(NAMES)):
        lines = seen.page.locator(f"figure[data-chart='{number}'] polyline")
        points = [line.get_attribute("points").split() for line in lines.all()]
        assert [len(each) for each in points] == [STEPS, STEPS, 25]
        first, last = (float(point.partition(",")[0]) for point in (points[0][0], points[0][-1]))
        assert first == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) / STEPS, abs=0.01)
        assert last == WIDTH - RIGHT
        heights = [float(point.partition(",")[2]) for point in points[0]]
        assert heights == sorted(heights)


def test_keys_move_the_cursor_of_every_chart_and_the_values_are_said(visit: Open, pages: dict[str, Path]) -> None:
    seen = visit(pages["three"])
    slider = seen.page.get_by_role("slider", name="Loss over steps")
    slider.focus()
    outputs = seen.page.locator("figure output")

    def after(key: str) -> str:
        seen.page.keyboard.press(key)
        found: str = slider.get_attribute("aria-valuetext")
        assert found == outputs.first.inner_text()
        return found

    assert after("Home") == "step 1: a 2.000 · b 4.000 · c 2.000"
    assert after("ArrowLeft") == "step 1: a 2.000 · b 4.000 · c 2.000"
    assert after("End").startswith("step 40: a 1.025 · b 2.050 · c 1.040 (step 25)")
    assert after("ArrowLeft").startswith("step 39: ")
    assert after("PageDown").startswith("step 29: ")
    assert after("ArrowUp").startswith("step 30: a 1.033")
    assert outputs.nth(1).inner_text().startswith("step 30: a 2.033")
    assert seen.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_pointing_reads_a_chart_at_a_step(visit: Open, pages: dict[str, Path]) -> None:
    seen = visit(pages["one"])
    svg = seen.page.locator("figure svg").first
    box = svg.bounding_box()
    share = (LEFT + (WIDTH - LEFT - RIGHT) * 20 / STEPS) / WIDTH
    svg.hover(position={"x": share * box["width"], "y": box["height"] / 2})
    assert seen.page.locator("figure output").first.inner_text() == "1.050 at step 20"


def test_all_can_be_reached_by_tab(visit: Open, pages: dict[str, Path]) -> None:
    seen = visit(pages["one"])
    reached = []
    for _ in range(len(NAMES) + 7):
        seen.page.keyboard.press("Tab")
        reached.append(seen.page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert [name for name in reached if name][:2] == ["Loss over steps", "Cross-entropy, nats per token over steps"]
    assert len([name for name in reached if name]) == len(NAMES) + 5


@EACH
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(visit: Open, pages: dict[str, Path], scheme: str, page: str) -> None:
    contrasts = visit(pages[page], color_scheme=scheme).contrasts()
    assert len(contrasts) > 100
    assert [words for ratio, words in contrasts if ratio < 4.5] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_stand_out_from_the_ground_and_differ(visit: Open, tmp_path: Path, scheme: str) -> None:
    """Seven runs: six colours, then the first again in dashes."""
    write_report([a_run(tmp_path / f"{n}", factor=1 + n) for n in range(7)], tmp_path / "seven.html")
    seen = visit(tmp_path / "seven.html", color_scheme=scheme)
    looks = seen.page.eval_on_selector_all(
        ".runs line", "all => all.map(getComputedStyle).map(s => [s.stroke, s.strokeDasharray])"
    )
    assert len({tuple(look) for look in looks}) == 7
    assert len({stroke for stroke, _ in looks}) == 6
    ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert min(contrast(stroke, ground) for stroke, _ in looks) >= 3


def contrast(one: str, other: str) -> float:
    def light(color: str) -> float:
        channels = [int(c) / 255 for c in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    low, high = sorted([light(one), light(other)])
    return (high + 0.05) / (low + 0.05)


@EACH
def test_on_paper_everything_is_there_in_black_on_white(visit: Open, pages: dict[str, Path], page: str) -> None:
    seen = visit(pages[page], color_scheme="dark", viewport={"width": 680, "height": 960})
    seen.page.emulate_media(media="print", color_scheme="dark")
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 680
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for selector in ("h1", "figure svg", "table", ".sample"):
        assert seen.page.locator(selector).first.is_visible(), selector
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert seen.page.evaluate(wide) == 0
    assert min(ratio for ratio, _ in seen.contrasts()) >= 4.5


@EACH
@pytest.mark.parametrize("width", [400, 1200])
def test_it_fits_its_window(visit: Open, pages: dict[str, Path], page: str, width: int) -> None:
    seen = visit(pages[page], viewport={"width": width, "height": 860})
    assert seen.page.evaluate("document.documentElement.scrollWidth") == width


def test_it_says_what_a_reader_without_eyes_needs(visit: Open, pages: dict[str, Path]) -> None:
    seen = visit(pages["three"])
    assert seen.page.locator("html").get_attribute("lang") == "en"
    for landmark in ("header", "main"):
        assert seen.page.locator(landmark).count() == 1
    without = "[...document.querySelectorAll('table')].filter(t => !t.caption || !t.caption.textContent).length"
    assert seen.page.evaluate(without) == 0
    assert seen.page.get_by_role("list", name="Runs").get_by_role("listitem").all_inner_texts() == ["a", "b", "c"]


def test_text_of_a_run_is_shown_and_runs_nothing(visit: Open, tmp_path: Path) -> None:
    write_report([a_run(tmp_path / HOSTILE.replace("/", "∕"), words=HOSTILE)], tmp_path / "hostile.html")
    seen = visit(tmp_path / "hostile.html")
    assert seen.complaints == []
    assert seen.page.locator("script").count() == 2
    assert seen.page.locator("main img").count() == 0
    shown = HOSTILE.replace("\u202e", "\ufffd")
    assert seen.page.locator(".sample dd").first.inner_text() == shown * 2
    assert "\u202e" not in (tmp_path / "hostile.html").read_text(encoding="utf-8")


def test_a_run_without_a_step_has_a_page_too(visit: Open, tmp_path: Path) -> None:
    write_report([RunFiles(tmp_path / "new", small_settings(), [], [], [], None)], tmp_path / "new.html")
    seen = visit(tmp_path / "new.html")
    assert seen.complaints == []
    words = seen.page.locator("main").inner_text()
    for sentence in ("No step has been taken yet.", "Nothing was measured", "No step has been timed.", "No sample"):
        assert sentence in words


def test_curves_by_cache_are_read_by_the_caches_names(visit: Open, tmp_path: Path) -> None:
    write_report([a_run_on_two_caches(tmp_path / "mixed")], tmp_path / "mixed.html")
    seen = visit(tmp_path / "mixed.html")
    figure = seen.page.locator("figure", has_text="KL at T, nats per token, by cache")
    assert seen.complaints == []
    figure.locator("svg[role=slider]").focus()
    seen.page.keyboard.press("End")
    assert figure.locator("output").inner_text() == "step 40: a 3.025 · b 4.025"
    assert figure.locator("li").all_inner_texts() == ["a", "b"]
    assert seen.complaints == []
