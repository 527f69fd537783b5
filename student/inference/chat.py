"""A conversation with a student: each message is read once, and what was said before lives in the recurrent state."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.inference.generate import Sampling, choose
from student.inference.text_stream import TextStream
from student.model.blocks import RecurrentState

if TYPE_CHECKING:
    from student.inference.load import Writer

PROBE = "\ufdd0"
"""A character that is in no text."""


class Chat:
    """Answers messages one after the other. Raises `UserError` if the tokenizer has no chat template."""

    def __init__(self, writer: "Writer", sampling: Sampling, max_new_tokens: int) -> None:
        self._student, self._tokenizer = writer.student, writer.tokenizer
        self._sampling, self._most = sampling, max_new_tokens
        if self._tokenizer.chat_template is None:
            raise UserError(
                "--chat: the student's tokenizer has no chat template; train from a cache of conversations, or give "
                "--prompt"
            )
        self._random = torch.Generator(writer.student.embedding.device).manual_seed(sampling.seed)
        self._stops = {writer.stop_token, self._end_of_turn()}
        self._messages: list[dict[str, str]] = []
        self._seen = ""
        """What the state has read and written: the beginning of the next rendering, unless the template changes it."""
        self._state: RecurrentState = {}

    def answer(self, words: str) -> Iterator[str]:
        """The answer to a message, piece by piece. Whoever stops early has said so far what there is."""
        self._messages.append({"role": "user", "content": words})
        said: list[str] = []
        try:
            for piece in self._pieces(self._unread()):
                said.append(piece)
                yield piece
        finally:
            self._messages.append({"role": "assistant", "content": "".join(said)})
            self._seen += "".join(said)

    def _unread(self) -> list[int]:
        """Tokens of the conversation behind what the state has read.

        A template that changes what is past, such as one that leaves out earlier thoughts, makes a new beginning.
        """
        text = self._rendered(self._messages, ask=True)
        if not text.startswith(self._seen):
            self._state, self._seen = {}, ""
        unread, self._seen = text[len(self._seen) :], text
        tokens: list[int] = self._tokenizer(unread, add_special_tokens=False, verbose=False)["input_ids"]
        return tokens

    @torch.no_grad()
    def _pieces(self, unread: list[int]) -> Iterator[str]:
        stream, token = TextStream(self._tokenizer, unread), None
        hidden_states, self._state = self._student.prefill(self._tensor(unread), self._state)
        for _ in range(self._most):
            token = choose(self._student.logits(hidden_states[0, -1]), self._sampling, self._random)
            if token in self._stops:
                break
            hidden_states, self._state = self._student.step(self._tensor([token]), self._state)
            yield stream.add(token)
        yield stream.finish()

    def _end_of_turn(self) -> int | None:
        """The special token that the template puts behind an answer, if it does."""
        asked = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
        behind = self._rendered(asked, ask=False).rpartition(PROBE)[2].lstrip()
        found: list[int] = self._tokenizer(behind, add_special_tokens=False)["input_ids"]
        special = {number for number, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        return found[0] if found and found[0] in special else None

    def _rendered(self, messages: list[dict[str, str]], *, ask: bool) -> str:
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        return text

    def _tensor(self, tokens: list[int]) -> Tensor:
        return torch.tensor([tokens], device=self._student.embedding.device)
