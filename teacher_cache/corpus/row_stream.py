"""The corpus of a build as rows in order: counted, or taken a shard at a time from wherever a position is known."""

from collections.abc import Iterator
from itertools import chain, islice

from delta_common.errors import UserError
from teacher_cache.corpus.bookmarks import Position, Positions
from teacher_cache.corpus.documents import BEGINNING, RowEnd
from teacher_cache.corpus.rows import TokenRow, cut_rows, tokenize
from teacher_cache.corpus.source import Corpus
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher.model import Teacher


class CorpusRows:
    """The corpus as rows; for one thread at a time.

    Rows asked for in ascending order are read in one go. With `positions` reading begins at the last one known, and
    those that are passed are kept.
    """

    def __init__(self, settings: BuildSettings, teacher: Teacher, positions: Positions | None = None) -> None:
        self._positions = positions
        pinned = {"revision": positions.revision} if positions and positions.revision else {}
        self._source = settings.corpus.source
        self._corpus = Corpus(settings.corpus.model_copy(update=pinned))
        self._settings = settings.rows
        self._tokenizer, self._identity = teacher.tokenizer, teacher.tokenizer_identity()
        self._next_row = 0
        self._rows = self._from_beginning()

    def count(self) -> int:
        """Rows the whole corpus gives: one pass of tokenising. Raises `UserError` when there is none."""
        rows = sum(1 for _ in self._from_beginning())
        if not rows:
            raise UserError(f"corpus.source {self._source}: no document has text; check corpus.text_column")
        return rows

    def take(self, wanted: range) -> Iterator[TokenRow]:
        """The rows of one shard; raises `UserError` when the corpus ends before them."""
        self._approach(wanted.start)
        for _ in self._advance(wanted.start):
            pass
        yield from self._advance(wanted.stop)
        if self._next_row < wanted.stop:
            raise UserError(
                f"corpus.source {self._source}: ends after {self._next_row} rows, rows.count asks for "
                f"more; set rows.count to {self._next_row} or less, or leave it out (finished shards are kept)"
            )

    def _advance(self, row: int) -> Iterator[TokenRow]:
        """Rows up to `row`, from where reading is."""
        for taken, end in islice(self._rows, max(0, row - self._next_row)):
            self._next_row += 1
            if self._positions is not None:
                self._positions.save(self._next_row, end)
            yield taken

    def _approach(self, row: int) -> None:
        """Go on from where reading is, or from a known position that is nearer to `row`."""
        if row < self._next_row:
            self._rows, self._next_row = self._from_beginning(), 0
        if row == self._next_row or (self._next_row and not self._corpus.seeks):
            return
        for position in self._positions.between(self._next_row, row) if self._positions else ():
            rows = self._from(position)
            if rows is not None:
                self._rows, self._next_row = rows, position.row
                return

    def _from_beginning(self) -> Iterator[tuple[TokenRow, RowEnd]]:
        documents = self._corpus.documents(BEGINNING)
        tokenized = tokenize(documents, self._tokenizer, self._identity.eos_token_id)
        return cut_rows(tokenized, self._settings, self._identity.pad_token_id)

    def _from(self, position: Position) -> Iterator[tuple[TokenRow, RowEnd]] | None:
        """Rows from a position on, None where the corpus does not have there what it says."""
        eos = self._identity.eos_token_id
        documents = self._corpus.documents(position.place)
        try:
            first = list(tokenize(islice(documents, 1), self._tokenizer, eos))
        except UserError:  # what is wrong with the corpus itself shows again on the way from further ahead
            return None
        if not first or not position.holds(first[0].tokens, self._settings.mode):
            return None
        tokenized = chain(first, tokenize(documents, self._tokenizer, eos))
        return cut_rows(tokenized, self._settings, self._identity.pad_token_id, position.used)
