"""Text out of tokens while they come: whole characters only, in constant time a token."""

from collections.abc import Sequence
from typing import Protocol

UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are no character, or not yet."""
MOST_PENDING = 16
"""Tokens kept back at most: more than the bytes of a character, so that what never becomes one does not pile up."""


class Decoder(Protocol):
    """What of a tokenizer is needed."""

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
        """What can be shown now that this token has come; empty in the middle of a character."""
        self._pending.append(token)
        return self._take() if len(self._pending) >= MOST_PENDING or not self._new().endswith(UNFINISHED) else ""

    def finish(self) -> str:
        """What was kept back."""
        return self._take()

    def _new(self) -> str:
        before = self._decoder.decode(self._shown)
        return self._decoder.decode(self._shown + self._pending)[len(before) :]

    def _take(self) -> str:
        text = self._new()
        if self._pending:
            self._shown, self._pending = self._pending, []
        return text
