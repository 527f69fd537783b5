"""The rows of a corpus: their number, or those of one shard, read from the nearest bookmark on."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from transformers import PreTrainedTokenizerBase

from delta_common.errors import UserError
from teacher_cache.corpus.bookmarks import Bookmark, Bookmarks
from teacher_cache.corpus.chat.rows import conversation_rows
from teacher_cache.corpus.chat.tokens import ConversationTokens
from teacher_cache.corpus.documents import BEGINNING, Placed, RowEnd, Tokenized
from teacher_cache.corpus.rows import TokenRow, cut_rows, tokenize
from teacher_cache.corpus.source import Corpus
from teacher_cache.format.manifest import TokenizerIdentity
from teacher_cache.settings import BuildSettings


class CorpusRows:
    """The corpus as rows; not for several threads at once.

    Shards taken in ascending order are read in one pass. With `bookmarks` reading begins at the nearest one before the
    rows, and leaves bookmarks of the shards that it passes.
    """

    def __init__(
        self,
        settings: BuildSettings,
        tokenizer: PreTrainedTokenizerBase,
        identity: TokenizerIdentity,
        bookmarks: Bookmarks | None = None,
    ) -> None:
        self._bookmarks = bookmarks
        pinned = {"revision": bookmarks.revision} if bookmarks and bookmarks.revision else {}
        self._source = settings.corpus.source
        self._corpus = Corpus(settings.corpus.model_copy(update=pinned))
        self._special_as_text = settings.corpus.special_tokens == "text"
        self._settings = settings.rows
        self._tokenizer, self._identity = tokenizer, identity
        self._conversations: ConversationTokens | None = None
        if settings.corpus.has_conversations:
            self._conversations = ConversationTokens(tokenizer, settings.corpus, settings.rows, identity.eos_token_id)
        self._next_row = 0
        self._rows = self._from_beginning()

    def count(self) -> int:
        """The number of rows, found by tokenizing the whole corpus. Raises `UserError` when there is none."""
        rows = sum(1 for _ in self._from_beginning())
        if not rows:
            raise UserError(f"corpus.source {self._source}: {self._why_no_row()}")
        return rows

    def skipped(self) -> str:
        """Which conversations of those read so far give no row, in one line; empty where all do."""
        return self._conversations.skipped.words() if self._conversations else ""

    def _why_no_row(self) -> str:
        if self._conversations is None:
            return "no document has text; check corpus.text_column"
        return f"no conversation has a label; {self.skipped() or 'there are none; check the source'}"

    def take(self, wanted: range) -> Iterator[TokenRow]:
        """The rows of one shard; raises `UserError` when the corpus ends before them."""
        self._approach(wanted.start)
        for _ in self._advance(wanted.start):
            pass
        yield from self._advance(wanted.stop)
        if self._next_row < wanted.stop:
            if not self._next_row and self._conversations is not None:
                raise UserError(f"corpus.source {self._source}: {self._why_no_row()}")
            raise UserError(
                f"corpus.source {self._source}: ends after {self._next_row} rows, rows.count asks for "
                f"more; set rows.count to {self._next_row} or less, or leave it out (finished shards are kept)"
            )

    def _advance(self, row: int) -> Iterator[TokenRow]:
        """The rows between the one to be read next and `row`."""
        for taken, end in islice(self._rows, max(0, row - self._next_row)):
            self._next_row += 1
            if self._bookmarks is not None:
                self._bookmarks.save(self._next_row, end)
            yield taken

    def _approach(self, row: int) -> None:
        """Make the next row `row`, or one before it as near as a bookmark allows."""
        if row < self._next_row:
            self._rows, self._next_row = self._from_beginning(), 0
        if row == self._next_row or (self._next_row and not self._corpus.seeks):
            return
        for bookmark in self._bookmarks.between(self._next_row, row) if self._bookmarks else ():
            rows = self._from(bookmark)
            if rows is not None:
                self._rows, self._next_row = rows, bookmark.row
                return

    def _from_beginning(self) -> Iterator[tuple[TokenRow, RowEnd]]:
        return self._cut(self._tokenized(self._corpus.documents(BEGINNING)), 0)

    def _cut(self, documents: Iterable[Tokenized], used: int) -> Iterator[tuple[TokenRow, RowEnd]]:
        cut = cut_rows if self._conversations is None else conversation_rows
        return cut(documents, self._settings, self._identity.pad_token_id, used)

    def _from(self, bookmark: Bookmark) -> Iterator[tuple[TokenRow, RowEnd]] | None:
        """Rows from a bookmark on; None if the corpus no longer has there what the bookmark says."""
        documents = self._corpus.documents(bookmark.place)
        try:
            first = list(self._tokenized(islice(documents, 1)))
        except UserError:  # a fault of the corpus itself is met again when reading from further ahead
            return None
        in_window = self._conversations is not None and self._settings.mode == "packed"
        if not first or not bookmark.holds(first[0].tokens, "window" if in_window else self._settings.mode):
            return None
        return self._cut(chain(first, self._tokenized(documents)), bookmark.used)

    def _tokenized(self, documents: Iterable[Placed]) -> Iterator[Tokenized]:
        """Documents as tokens. Raises `UserError` on a token that has no row in the teacher's LM head."""
        eos, rows = self._identity.eos_token_id, self._identity.vocab_size
        tokenized = (
            tokenize(documents, self._tokenizer, eos, special_as_text=self._special_as_text)
            if self._conversations is None
            else self._conversations.tokenize(documents)
        )
        for document in tokenized:
            largest = int(document.tokens.max())
            if largest >= rows:
                raise UserError(
                    f"corpus.source {self._source}: a document has the token {largest}, "
                    f"{self._tokenizer.convert_ids_to_tokens(largest)!r}, but the teacher knows {rows} tokens only; "
                    "set corpus.special_tokens to text, or remove the document"
                )
            yield document
