"""Turns tokens into text as they come: whole characters only, in constant time per token."""

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are not, or not yet, a character."""
MOST_PENDING = 16
"""Most tokens held back: more than a character has bytes. Without a limit, bytes that never become one pile up."""


class Decoder(Protocol):
    """The part of a tokenizer that is needed."""

    def decode(self, token_ids: list[int]) -> str: ...


class TextStream:
    """Turns tokens into the text that decoding all of them at once would give, piece by piece.

    The tokens of the piece before are decoded again with each new piece, since a decoder may treat the first token of
    a text in its own way, such as dropping its space.
    """

    def __init__(self, decoder: Decoder, before: Sequence[int] = ()) -> None:
        """`before` are tokens that have been shown already, such as a prompt."""
        self._decoder = decoder
        self._shown = list(before[-MOST_PENDING:])
        self._pending: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes; empty in the middle of a character."""
        self._pending.append(token)
        return self._take() if len(self._pending) >= MOST_PENDING or not self._new().endswith(UNFINISHED) else ""

    def finish(self) -> str:
        """The text held back so far."""
        return self._take()

    def _new(self) -> str:
        before = self._decoder.decode(self._shown)
        return self._decoder.decode(self._shown + self._pending)[len(before) :]

    def _take(self) -> str:
        text = self._new()
        if self._pending:
            self._shown, self._pending = self._pending, []
        return text
