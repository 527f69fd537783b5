"""A row of a cache as text: each token beside the teacher's first choices for it."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer

from delta_common.errors import UserError
from teacher_cache.format.arrays import ROLES
from teacher_cache.read.cache import Cache

CHOICES_SHOWN = 5
_HIDDEN_CATEGORIES = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


@dataclass(frozen=True)
class PositionView:
    """One position of a row: its token, the next one, and the teacher's first choices with p at `temperature`."""

    position: int
    token: str
    following: str
    counted: bool
    temperature: float
    choices: list[tuple[str, float]]
    remaining_mass: float
    role: str | None = None
    """Whose token the next one is, of conversations."""

    def to_json(self) -> dict[str, object]:
        return vars(self)


def view_row(cache: Cache, row: int, first: int = 0, last: int | None = None) -> list[PositionView]:
    """Positions first..last of a row as text; raises `UserError` naming `--row` or `--tokens` when out of range."""
    if not -len(cache) <= row < len(cache):
        raise UserError(f"--row {row}: the cache has rows 0 to {len(cache) - 1}")
    first, last = checked_span(cache, first, last)
    decode, temperature = token_decoder(cache), usual_temperature(cache)
    stored, targets = cache[row], cache.targets([row], temperature=temperature)
    chances = targets.probabilities[0]
    certain = chances.shape[-1] if cache.layout.mode == "exact" else cache.layout.top_k
    shown = min(CHOICES_SHOWN, certain)
    return [
        PositionView(
            position=t,
            token=decode(int(stored.tokens[t])),
            following=decode(int(stored.tokens[t + 1])),
            counted=bool(stored.loss_mask[t]),
            temperature=temperature,
            choices=[(decode(int(targets.ids[0, t, k])), float(chances[t, k])) for k in range(shown)],
            remaining_mass=max(0.0, 1 - float(chances[t].sum())),
            role=None if stored.role is None else ROLES[stored.role[t]],
        )
        for t in range(first, last)
    ]


def checked_span(cache: Cache, first: int, last: int | None) -> tuple[int, int]:
    """First position and the one behind the last; raises `UserError` naming `--tokens`."""
    length = cache.manifest.seq_len
    last = length if last is None else last
    if not 0 <= first < last <= length:
        raise UserError(f"--tokens {first}:{last}: a row has positions 0:{length}")
    return first, last


def parse_span(tokens: str | None) -> tuple[int, int | None]:
    """Positions from `A:B`; raises `UserError` naming `--tokens`."""
    if tokens is None:
        return 0, None
    first, colon, last = tokens.partition(":")
    try:
        return int(first or 0), int(last) if last else (None if colon else int(first) + 1)
    except ValueError:
        raise UserError(f"--tokens {tokens}: expected A:B, such as 0:40") from None


def usual_temperature(cache: Cache) -> float:
    """1 where the cache covers it, else its lowest temperature."""
    nodes = cache.manifest.node_temperatures
    return 1.0 if min(nodes) <= 1 <= max(nodes) else min(nodes)


def token_decoder(cache: Cache) -> Callable[[int], str]:
    """A token's text by its id; `<id>` in a synthetic cache, which has no tokenizer."""
    if cache.tokenizer_folder is None:
        return lambda token: f"<{token}>"
    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder)
    return lambda token: str(tokenizer.decode([token]))


def visible_text(text: str) -> str:
    """Text in one line, all of it visible: `␣the`, `⏎`, and `⟨U+202E⟩` for a character that could change the rest."""
    return "".join({" ": "␣", "\n": "⏎", "\t": "⇥"}.get(c) or _harmless(c) for c in text)


def running_text(text: str) -> str:
    """Text with its spaces and line breaks as they are; control and other invisible characters by their names."""
    return "".join({"\n": "⏎\n", " ": " ", "\t": "⇥"}.get(c) or _harmless(c) for c in text)


def _harmless(character: str) -> str:
    hidden = unicodedata.category(character) in _HIDDEN_CATEGORIES
    return f"⟨U+{ord(character):04X}⟩" if hidden else character


def render_row(views: list[PositionView]) -> Table:
    """A row as a table: each token, the next one, the first choices (the actual next token marked) and what is left."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("t", "token", "next"):
        table.add_column(heading, overflow="fold")
    temperature = views[0].temperature
    table.add_column(f"the teacher's first choices at T = {temperature:g}", overflow="fold")
    table.add_column("rest", justify="right", overflow="fold")
    for view in views:
        words = [Text(str(view.position)), Text(visible_text(view.token)), Text(visible_text(view.following))]
        if not view.counted:
            table.add_row(*words, "masked" if view.role is None else f"masked: {view.role}", "")
            continue
        choices = Text("  ").join(
            Text(f"{visible_text(word)} {p:.2f}", style="bold green" if word == view.following else "")
            for word, p in view.choices
        )
        table.add_row(*words, choices, f"{view.remaining_mass:.3f}")
    return table
