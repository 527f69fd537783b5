"""Log-probabilities of given tokens are those of one pass over each row by itself."""

from pathlib import Path

import pytest
import torch

from student.inference import likelihood as module
from student.inference.likelihood import TOGETHER, batches, log_probabilities
from tests.helpers.small_students import tokens_of
from tests.helpers.task_writers import KINDS, small_writer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [4, 512])
def test_rows_of_any_length_have_what_each_has_alone(
    kind: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for where in ("inference.likelihood", "model.xlstm", "model.transplant.student", "model.causal_lm.student"):
        monkeypatch.setattr(f"student.{where}.PREFILL_LENGTH", chunk)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 1200)
    student = small_writer(kind, tmp_path).student
    rows = [tokens_of(1, length, length)[0].tolist() for length in (3, 11, 7, 1, 2)]
    found = log_probabilities(student, rows)
    for row, (known, likeliest) in zip(rows, found, strict=True):
        assert len(known) == len(likeliest) == len(row) - 1
        if len(row) > 1:
            with torch.no_grad():
                logits = student.logits(student(torch.tensor([row])))[0, :-1]
            expected = logits.log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]
            assert torch.allclose(known, expected, rtol=0, atol=2e-4)
            assert torch.equal(likeliest, logits.argmax(-1) == torch.tensor(row[1:]))


def test_a_row_that_the_student_wrote_is_likeliest_throughout(tmp_path: Path) -> None:
    from student.inference.generate import generate_tokens

    student = small_writer("xlstm", tmp_path).student
    written = generate_tokens(student, [5, 6], max_new_tokens=6)
    [(_, likeliest)] = log_probabilities(student, [[5, 6, *written]])
    assert likeliest[1:].all()


def test_batches_hold_every_row_once_and_long_ones_alone() -> None:
    lengths = [10, 2000, 30, 513, *range(1, 20)]
    found = list(batches(lengths))
    assert sorted(number for batch in found for number in batch) == list(range(len(lengths)))
    assert max(map(len, found)) == TOGETHER
    assert all(len(batch) == 1 for batch in found if max(lengths[n] for n in batch) > 512)
