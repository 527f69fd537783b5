"""Writing under a teacher: perplexity and repetition of what was really written."""

import math
from pathlib import Path

import pytest
import torch

from delta_common.errors import UserError
from student.evaluate.tasks import writing as module
from student.evaluate.tasks.writing import beginnings, judged, judged_text, repeated
from student.inference.generate import Sampling, generate_all
from tests.helpers.task_writers import small_writer
from tests.helpers.tokenizers_for_tests import byte_tokenizer

DOCUMENTS = ["abcdefgh" * 12, "short", "the quick brown fox jumps over the lazy dog " * 2]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMPT_TOKENS", 4)
    monkeypatch.setattr(module, "WRITTEN_TOKENS", 12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ([], (0, 0)),
        ([1, 2, 3], (0, 0)),
        ([1] * 6, (2, 3)),
        ([1, 2, 3, 4, 1, 2, 3, 4], (1, 5)),
        (list(range(9)), (0, 6)),
    ],
)
def test_a_4_gram_is_repeated_where_its_text_had_it_before(text: list[int], expected: tuple[int, int]) -> None:
    assert repeated(text) == expected


def test_beginnings_are_cut_from_documents_in_turn(tmp_path: Path) -> None:
    begun = beginnings(small_writer("xlstm", tmp_path), DOCUMENTS, 5)
    assert [each.document for each in begun] == [0, 2, 0, 2, 0]
    assert byte_tokenizer().decode(begun[1].prompt + begun[1].text) == DOCUMENTS[2][:16]
    assert byte_tokenizer().decode(begun[3].prompt + begun[3].text) == DOCUMENTS[2][16:32]
    with pytest.raises(UserError, match="no held-out document has 16 tokens"):
        beginnings(small_writer("xlstm", tmp_path), ["short"], 5)


@pytest.mark.parametrize("kind", ["xlstm", "hybrid"])
def test_the_teacher_judges_what_the_student_wrote(kind: str, tmp_path: Path) -> None:
    student, teacher = small_writer(kind, tmp_path), small_writer("transformer", tmp_path)
    begun = beginnings(student, DOCUMENTS, 10)
    likeliest, drawn = judged("student", student, teacher, begun)
    for found, temperature in ((likeliest, 0.0), (drawn, 1.0)):
        texts = generate_all(
            student.student,
            [each.prompt for each in begun],
            max_new_tokens=12,
            sampling=Sampling(temperature),
            stop_token=student.stop_token,
        )
        nats = sum(_nats(teacher.student, each.prompt, text) for each, text in zip(begun, texts, strict=True))
        assert found.tokens_per_text == pytest.approx(sum(map(len, texts)) / 10)
        assert found.perplexity is not None
        assert found.perplexity.value == pytest.approx(math.exp(nats / sum(map(len, texts))), rel=1e-3)
        again, grams = (sum(column) for column in zip(*map(repeated, texts), strict=True))
        assert found.repetition is not None
        assert found.repetition.value == pytest.approx(again / grams)
    assert (likeliest.way, drawn.way) == ("likeliest", "drawn")
    text = judged_text(teacher, begun)
    assert text.repetition is not None
    assert text.tokens_per_text == 12
    assert 0 < text.repetition.value < 1


def test_who_writes_nothing_has_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student = small_writer("xlstm", tmp_path)
    monkeypatch.setattr(module, "generate_all", lambda _, prompts, **__: [[] for _ in prompts])
    for found in judged("student", student, student, beginnings(student, DOCUMENTS, 3)):
        assert (found.perplexity, found.repetition, found.tokens_per_text) == (None, None, 0.0)


def _nats(student: object, prompt: list[int], text: list[int]) -> float:
    with torch.no_grad():
        logits = student.logits(student(torch.tensor([prompt + text])))[0]  # type: ignore[operator, attr-defined]
    chances = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
    return -float(chances.gather(-1, torch.tensor(text, dtype=torch.long)[:, None]).sum())
