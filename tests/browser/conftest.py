"""A headless Chromium of the system for pages that are looked at as a reader would; without one, tests are skipped."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from teacher_cache import Cache, open_cache
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.inspect.page import write_page

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")

CONTRASTS = """() => {
  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = (element) => {
    const own = parse(getComputedStyle(element).backgroundColor);
    if (own[3] === 1) return own;
    return over(own, element.parentElement ? ground(element.parentElement) : [255, 255, 255, 1]);
  };
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const words = walker.currentNode.data.trim();
    if (!words || !element.getClientRects().length || element.closest("script, title")) continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(element.closest("svg") ? style.fill : style.color)), light(ground(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), words]);
  }
  return found;
}"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


class Visit:
    """A page that was opened from disk: what it asked for and what it complained about is written down."""

    def __init__(self, browser: Browser, path: Path, **context: Any) -> None:
        self._context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context})
        self.page: Page = self._context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(path.as_uri())

    def close(self) -> None:
        self._context.close()

    def contrasts(self) -> list[tuple[float, str]]:
        """Each piece of text that is shown, with its contrast to what it stands on."""
        found: list[tuple[float, str]] = self.page.evaluate(CONTRASTS)
        return found

    def set_temperature(self, temperature: float) -> None:
        self.page.locator("#temperature").fill(f"{temperature:g}")

    def focus(self, token: int) -> None:
        self.page.locator(".tokens .token").nth(token).focus()

    def numbers(self, selector: str) -> list[float]:
        """Values of every `data` element that a selector finds."""
        values: list[float] = self.page.eval_on_selector_all(selector, "found => found.map(e => Number(e.value))")
        return values


@pytest.fixture
def visit(browser: Browser) -> Iterator[Any]:
    visits: list[Visit] = []

    def open_page(path: Path, **context: Any) -> Visit:
        visits.append(Visit(browser, path, **context))
        return visits[-1]

    yield open_page
    for opened in visits:
        opened.close()


KINDS: dict[str, dict[str, Any]] = {
    "top": {"top_k": 60},
    "sampled": {"top_k": 6, "samples": 20},
    "exact": {"top_k": 1, "mode": "exact"},
}
SIZES: dict[str, Any] = {"rows": 24, "seq_len": 24, "vocab_size": 300, "hidden_size": 32, "rows_per_shard": 4}


@pytest.fixture(scope="session")
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Of sampled entries, where a test does not ask for each kind."""
    kind = KINDS[getattr(request, "param", "sampled")]
    return open_cache(make_synthetic_cache(tmp_path_factory.mktemp("cache") / "c", **SIZES, **kind))


@pytest.fixture(scope="session")
def page_file(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(cache, path, [1, 5], None)
    return path
