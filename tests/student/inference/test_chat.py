"""A conversation is read once: what was said before lives in the recurrent state."""

from dataclasses import replace

import pytest
import torch

from delta_common.errors import UserError
from student.inference import chat as module
from student.inference.chat import Chat
from student.inference.generate import Sampling
from student.inference.load import Writer
from tests.helpers.chat_families import FAMILIES, Family, tokenizer_of
from tests.helpers.small_students import small_model

CHATML = FAMILIES["ChatML"]
TRIMS = replace(CHATML, marked=CHATML.marked.replace("message['content'] +", "message['content'] | upper +"))
"""A template that changes what was said."""


def writer_of(family: Family = CHATML, kind: str = "xlstm") -> Writer:
    tokenizer = tokenizer_of(family)
    student = small_model(kind, vocab_size=len(tokenizer), padded_vocab_size=len(tokenizer)).student
    return Writer(student, tokenizer, None)


class Watched:
    """Notes every token that a student reads, in order, by conversation begun."""

    def __init__(self, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[list[int]] = []
        student = writer.student
        prefill, step = student.prefill, student.step
        inside = False  # some students take a step by reading one token

        def reading(tokens: torch.Tensor, state: dict[str, object] | None = None) -> object:
            if not inside:
                self.read += [[]] if not state else []
                self.read[-1] += tokens[0].tolist()
            return prefill(tokens, state)

        def stepping(tokens: torch.Tensor, state: dict[str, object]) -> object:
            nonlocal inside
            self.read[-1] += tokens[0].tolist()
            inside = True
            found = step(tokens, state)
            inside = False
            return found

        monkeypatch.setattr(student, "prefill", reading)
        monkeypatch.setattr(student, "step", stepping)


@pytest.mark.parametrize("kind", ["xlstm", "transplant"])
def test_no_token_is_read_twice_and_answers_are_those_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of(kind=kind)
    watched = Watched(writer, monkeypatch)
    chat = Chat(writer, Sampling(), 6)
    answers = ["".join(chat.answer(words)) for words in ("Hello", "And?", "More")]
    [read] = watched.read
    said = zip(("Hello", "And?", "More"), answers, strict=True)
    whole = "".join(f"<|im_start|>user\n{w}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n" for w, a in said)
    assert writer.tokenizer.decode(read) == whole.removesuffix("<|im_end|>\n")
    with torch.no_grad():
        states, _ = writer.student.prefill(torch.tensor([read]))
    following = writer.student.logits(states[0]).argmax(-1)[:-1].tolist()
    assert [following[at - 1] for at in range(len(read) - 6, len(read))] == read[-6:]


def test_a_template_that_changes_the_past_is_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of(TRIMS)
    watched = Watched(writer, monkeypatch)
    chat = Chat(writer, Sampling(temperature=2.0), 12)
    answers = ["".join(chat.answer(words)) for words in ("A", "B")]
    assert answers[0] != answers[0].upper()
    assert len(watched.read) == 2
    assert writer.tokenizer.decode(watched.read[1]).startswith("<|im_start|>user\nA<|im_end|>")


def test_an_answer_ends_with_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of()
    [end] = writer.tokenizer.convert_tokens_to_ids(["<|im_end|>"])
    letter = writer.tokenizer("a")["input_ids"][0]
    chosen = iter([letter, letter, end])
    monkeypatch.setattr(module, "choose", lambda *_: next(chosen))
    assert "".join(Chat(writer, Sampling(), 100).answer("x")) == "aa"


def test_who_stops_an_answer_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = writer_of()
    watched = Watched(writer, monkeypatch)
    letter = writer.tokenizer("a")["input_ids"][0]
    monkeypatch.setattr(module, "choose", lambda *_: letter)
    chat = Chat(writer, Sampling(), 100)
    answer = chat.answer("x")
    assert next(answer) == "a"
    answer.close()  # type: ignore[attr-defined]
    next(chat.answer("y"))
    assert len(watched.read) == 1
    assert "assistant\na<|im_end|>\n<|im_start|>user\ny" in writer.tokenizer.decode(watched.read[0])


def test_without_a_template_there_is_no_conversation() -> None:
    writer = writer_of()
    writer.tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        Chat(writer, Sampling(), 5)
