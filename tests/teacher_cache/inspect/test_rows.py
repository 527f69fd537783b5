"""A row as text: first choices, spans, and characters that could act on a terminal."""

import pytest
from rich.console import Console

from delta_common.errors import UserError
from teacher_cache import Cache
from teacher_cache.inspect.rows import (
    parse_span,
    render_row,
    running_text,
    usual_temperature,
    view_row,
    visible_text,
)


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


def test_running_text_keeps_its_spaces_and_lines() -> None:
    assert running_text(" a\n\t\x1b\u202e") == " a⏎\n⇥⟨U+001B⟩⟨U+202E⟩"


def test_a_row_is_shown_as_it_is_where_it_looks_like_markup(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("teacher_cache.inspect.rows.token_decoder", lambda _: lambda _: "[/bold]\x1b")
    console = Console(width=200)
    with console.capture() as captured:
        console.print(render_row(view_row(cache, 0, 0, 2)))
    assert captured.get().count("[/bold]⟨U+001B⟩") >= 5


def test_masked_positions_have_no_choices(cache: Cache) -> None:
    views = view_row(cache, 0, 0, 2)
    views[1] = type(views[1])(**{**vars(views[1]), "counted": False})
    console = Console(width=100)
    with console.capture() as captured:
        console.print(render_row(views))
    assert captured.get().count("masked") == 1


@pytest.mark.parametrize(
    ("words", "span"), [(None, (0, None)), ("3:9", (3, 9)), ("3:", (3, None)), (":9", (0, 9)), ("3", (3, 4))]
)
def test_spans_are_first_and_behind_the_last(words: str | None, span: tuple[int, int | None]) -> None:
    assert parse_span(words) == span


def test_a_span_that_is_no_number_is_named() -> None:
    with pytest.raises(UserError, match="--tokens a:b: expected A:B, such as 0:40"):
        parse_span("a:b")


@pytest.mark.parametrize(("nodes", "usual"), [([0.5, 1.0, 2.0], 1.0), ([0.5, 4.0], 1.0), ([1.5, 2.0], 1.5)])
def test_the_usual_temperature_is_one_where_it_is_cached(cache: Cache, nodes: list[float], usual: float) -> None:
    targets = cache.manifest.targets.model_copy(update={"node_temperatures": nodes})
    manifest = cache.manifest.model_copy(update={"targets": targets})
    assert usual_temperature(Cache(cache.store, manifest, cache.commits)) == usual
