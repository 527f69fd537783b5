"""What students of every kind choose and write, beside one pass for each choice."""

from pathlib import Path

import pytest
import torch

from delta_common.errors import UserError
from student.evaluate.tasks.answers import _begins_with, answer, continuation, fits, longest_context
from student.evaluate.tasks.examples import Example
from student.inference.generate import generate_tokens
from student.inference.load import Writer
from tests.helpers.task_writers import CONTEXT, KINDS, small_writer, task_of

CHOICES = (" there", " was it", " x")
PROMPTS = ("Once upon a time", "a", "the quick brown fox jumps")


def naive_choice(writer: Writer, prompt: str, choices: tuple[str, ...]) -> str:
    def total(choice: str) -> float:
        before, after = writer.tokenizer.encode(prompt), writer.tokenizer.encode(choice)
        with torch.no_grad():
            logits = writer.student.logits(writer.student(torch.tensor([before + after])))[0]
        chances = logits.double().log_softmax(-1)[len(before) - 1 :]
        return sum(float(chances[place, token]) for place, token in enumerate(after))

    return max(choices, key=total)


def naive_text(writer: Writer, prompt: str, length: int) -> str:
    tokens = generate_tokens(
        writer.student, writer.tokenizer.encode(prompt), max_new_tokens=length, stop_token=writer.stop_token
    )
    text: str = writer.tokenizer.decode(tokens, skip_special_tokens=True)
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_the_likeliest_choice_is_that_of_one_pass_for_each(kind: str, tmp_path: Path) -> None:
    writer = small_writer(kind, tmp_path)
    chosen = [naive_choice(writer, prompt, CHOICES) for prompt in PROMPTS]
    right = answer(writer, task_of(*(Example(p, c, CHOICES) for p, c in zip(PROMPTS, chosen, strict=True))))
    assert right["likelihood"] == [1.0, 1.0, 1.0]
    others = [next(choice for choice in CHOICES if choice != c) for c in chosen]
    wrong = answer(writer, task_of(*(Example(p, c, CHOICES) for p, c in zip(PROMPTS, others, strict=True))))
    assert wrong["likelihood"] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_the_student_writes_by_itself_is_right(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student.evaluate.tasks.answers._begins_with", lambda text, wanted: text.startswith(wanted))
    writer = small_writer(kind, tmp_path)
    texts = [naive_text(writer, prompt, 3) for prompt in PROMPTS]
    written = answer(writer, task_of(*(Example(p, t or "z") for p, t in zip(PROMPTS, texts, strict=True))))
    assert written == {"generation": [float(bool(text)) for text in texts]}
    assert any(texts)
    assert answer(writer, task_of(*(Example(p, "neither") for p in PROMPTS))) == {"generation": [0.0, 0.0, 0.0]}


def test_what_is_only_chosen_is_not_written(tmp_path: Path) -> None:
    task = task_of(Example("a", CHOICES[0], CHOICES, writes=False))
    assert answer(small_writer("xlstm", tmp_path), task).keys() == {"likelihood"}


@pytest.mark.parametrize(
    ("text", "begins"), [(" 48213", True), ("48213.", True), ("482134", False), ("4821", False), (" the 48213", False)]
)
def test_an_answer_ends_where_its_word_does(text: str, begins: bool) -> None:
    assert _begins_with(text, " 48213") == begins


def test_only_a_context_limits_what_is_read(tmp_path: Path) -> None:
    task = task_of(Example("x" * CONTEXT, " y"))
    assert not fits(small_writer("transformer", tmp_path), task)
    assert fits(small_writer("transformer", tmp_path), task_of(Example("x" * (CONTEXT - 20), " y")))
    assert fits(small_writer("hybrid", tmp_path), task)
    assert longest_context(small_writer("xlstm", tmp_path)) is None


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes no tokens"):
        answer(small_writer("xlstm", tmp_path), task_of(Example("", " y")))


class _Merging:
    """A tokenizer of pairs of letters, which joins the last letter of a prompt with the first of what follows."""

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [sum(map(ord, text[i : i + 2])) for i in range(0, len(text), 2)]}


def test_where_tokens_join_over_the_end_of_a_prompt_a_choice_is_split_by_itself(tmp_path: Path) -> None:
    writer = Writer(small_writer("xlstm", tmp_path).student, _Merging(), None)  # type: ignore[arg-type]
    assert continuation(writer, [ord("a") + ord("b")], "ab", "cd") == [ord("c") + ord("d")]
    assert continuation(writer, [ord("a")], "a", "bc") == [ord("b") + ord("c")]
