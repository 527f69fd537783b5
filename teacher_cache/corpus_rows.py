"""The corpus of a build as rows in order: counted, or taken a shard at a time."""

from collections.abc import Iterator
from itertools import islice

from cli_common.errors import UserError
from teacher_cache.corpus import iter_documents
from teacher_cache.rows import TokenRow, iter_rows
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher import Teacher


class CorpusRows:
    """The corpus as rows in order; ranges must be asked for in ascending order."""

    def __init__(self, settings: BuildSettings, teacher: Teacher) -> None:
        self._settings = settings
        self._tokens = teacher.tokenizer, teacher.tokenizer_identity()
        self._next_row = 0
        self._rows = self._iterate()

    def count(self) -> int:
        """Rows the whole corpus gives: one pass of tokenising."""
        return sum(1 for _ in self._iterate())

    def take(self, wanted: range) -> Iterator[TokenRow]:
        """The rows of one shard; raises `UserError` when the corpus ends before them."""
        for _ in islice(self._rows, wanted.start - self._next_row):
            self._next_row += 1
        for row in islice(self._rows, len(wanted)):
            self._next_row += 1
            yield row
        if self._next_row < wanted.stop:
            raise UserError(
                f"corpus.source {self._settings.corpus.source}: ends after {self._next_row} rows, rows.count asks for "
                f"more; set rows.count to {self._next_row} or less, or leave it out (finished shards are kept)"
            )

    def _iterate(self) -> Iterator[TokenRow]:
        tokenizer, identity = self._tokens
        return iter_rows(
            iter_documents(self._settings.corpus),
            tokenizer,
            self._settings.rows,
            eos_token_id=identity.eos_token_id,
            pad_token_id=identity.pad_token_id,
        )
