"""Conversations → tokens, each with who speaks it and whether it counts, cut to what a row holds."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from delta_common.errors import UserError
from delta_common.tokenizer import own_prefix
from teacher_cache.corpus.chat.spans import Rendered, UnclearError, render_conversation, require_answers_shown
from teacher_cache.corpus.chat.template import ChatTemplate, RefusedError, Span, template_name
from teacher_cache.corpus.documents import Cursor, Marks, Placed, Tokenized
from teacher_cache.corpus.messages import Conversation, Skipped
from teacher_cache.format.arrays import ROLES
from teacher_cache.settings import CorpusSettings, RowSettings

TOO_LONG = "longer than a row before the first answer that counts ends"


class ConversationTokens:
    """Makes rows' worth of tokens of conversations; those that give none are counted in `skipped`."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, corpus: CorpusSettings, rows: RowSettings, eos_token_id: int
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                "corpus.messages_column: the teacher's tokenizer does not say which characters a token stands for; use "
                "a teacher with a tokenizer.json, or corpus.text_column"
            )
        self._backend: Tokenizer = backend
        self._template = ChatTemplate(tokenizer, template_name(tokenizer, corpus))
        self._special_as_text = corpus.special_tokens == "text"
        self._rows, self._eos, self._prefix = rows, eos_token_id, own_prefix(tokenizer)
        self._said = False
        self.skipped = Skipped()

    def tokenize(self, documents: Iterable[Placed]) -> Iterator[Tokenized]:
        """The tokens of each conversation that has a label, at most as many as a row holds, in order."""
        for cursor, document in documents:
            assert document.conversation is not None
            found = self._tokenized(document.conversation, cursor)
            if isinstance(found, str):
                self.skipped.add(found, document.id)
            else:
                yield found

    def _tokenized(self, conversation: Conversation, cursor: Cursor) -> Tokenized | str:
        """The conversation's tokens, or why it gives no row."""
        if conversation.fault is not None:
            return conversation.fault
        try:
            rendered = render_conversation(self._template, conversation, special_as_text=self._special_as_text)
        except UnclearError as error:
            require_answers_shown(self._template)
            return f"in which the template does not show the answers ({error})"
        except RefusedError as error:
            return f"that the template refuses ({error})"
        ids, offsets = self._encoded(rendered, all_letters=conversation.plain is not None)
        counted = self._labels(rendered, offsets)
        ends = [int(np.searchsorted(offsets[:, 0], end)) for end in rendered.ends]
        roles = _roles(rendered, offsets)
        if conversation.plain is not None:
            ids, counted, roles = self._enclosed(ids, counted, roles)
            ends = [len(ids)]
        self._say_without_stop(rendered)
        length = self._fitting(len(ids), ends, counted)
        if length is None:
            return TOO_LONG if counted[1:].any() else "without a label"
        return Tokenized(cursor, ids[:length], Marks(counted[:length], roles[:length]))

    def _labels(self, rendered: Rendered, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which tokens (n,) are labels, of tokens that stand for the characters in offsets (n, 2)."""
        if self._rows.loss_on == "all":
            everywhere = np.ones(len(offsets), np.bool_)
            everywhere[:1] = False  # nothing says that a conversation begins
            return everywhere
        return inside(rendered.last if self._rows.loss_on == "last" else rendered.counted, offsets)

    def _enclosed(
        self, ids: NDArray[np.uint32], counted: NDArray[np.bool_], roles: NDArray[np.uint8]
    ) -> tuple[NDArray[np.uint32], NDArray[np.bool_], NDArray[np.uint8]]:
        """A plain prompt with its completion between what the tokenizer puts before a text, and EOS, which counts."""
        before, template = len(self._prefix), ROLES.index("template")
        return (
            np.concatenate([self._prefix, ids, [self._eos]]).astype(np.uint32),
            np.concatenate([np.zeros(before, np.bool_), counted, [True]]),
            np.concatenate([np.full(before, template), roles, [ROLES.index("assistant")]]).astype(np.uint8),
        )

    def _fitting(self, length: int, ends: Sequence[int], counted: NDArray[np.bool_]) -> int | None:
        """How many tokens to keep, so that they fit into a row and hold a label; None where that cannot be."""
        most = self._rows.seq_len + 1
        if length > most:
            whole_turns = max((end for end in ends if end <= most), default=0)
            length = most if self._rows.truncate_at == "token" else whole_turns
        return length if counted[1:length].any() else None

    def _encoded(self, rendered: Rendered, *, all_letters: bool) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Token ids (n,) and the characters (n, 2) that each stands for; `all_letters` of a text without a template."""
        self._backend.no_truncation()
        self._backend.no_padding()
        if all_letters or not rendered.quoted:
            return self._encode(rendered.text, 0, letters=all_letters and self._special_as_text)
        parts = [self._encode(rendered.text[a:b], a, letters=quoted) for (a, b), quoted in _pieces(rendered)]
        ids, offsets = zip(*parts, strict=True)
        return np.concatenate(ids), np.concatenate(offsets)

    def _encode(self, text: str, first: int, *, letters: bool) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        self._backend.encode_special_tokens = letters
        encoding: Encoding = self._backend.encode(text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return np.array(encoding.ids, np.uint32), offsets + first

    def _say_without_stop(self, rendered: Rendered) -> None:
        """Say once on stderr if no special token ends an answer: a student would never learn to stop."""
        if rendered.stops or self._said or self._rows.loss_on == "all":
            return
        self._said = True
        print(
            f"note: {self._template.name} ends answers without a special token that counts, so a student will not "
            "learn to stop; give as corpus.chat_template a file in which {% generation %} encloses one",
            file=sys.stderr,
        )


def inside(spans: Sequence[Span], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens (n,) stand for characters of these spans; offsets (n, 2) are the characters of each."""
    starts, stops = offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)
    found = np.zeros(len(offsets), np.bool_)
    for start, stop in spans:
        found |= (starts < stop) & (stops > start)
    return found


def _roles(rendered: Rendered, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The code in `ROLES` (n,) of each token: who speaks it."""
    roles = np.full(len(offsets), ROLES.index("template"), np.uint8)
    for span, role in rendered.words:
        roles[inside([span], offsets)] = ROLES.index(role)
    roles[inside(rendered.answers, offsets)] = ROLES.index("assistant")
    return roles


def _pieces(rendered: Rendered) -> Iterator[tuple[Span, bool]]:
    """The text in pieces, and whether each is the name of a special token inside a message, or several in a row."""
    borders = sorted({0, len(rendered.text), *(border for span in rendered.quoted for border in span)})
    quoted = {start for start, _ in rendered.quoted}
    pieces = [((a, b), a in quoted) for a, b in pairwise(borders)]
    for is_quoted, several in groupby(pieces, key=lambda piece: piece[1]):
        spans = [span for span, _ in several]
        yield (spans[0][0], spans[-1][1]), is_quoted
