"""Held-out measures at each position against whole probability vectors in float64."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from student.data.batch import Batch
from student.evaluate.positions import StudentPositions, student_positions, teacher_positions
from student.loss.divergence import dense_kl
from student.model.frozen import FrozenHead, read_frozen_weights
from teacher_cache.build.synthetic import SyntheticSettings, SyntheticTeacher, make_synthetic_cache
from teacher_cache.format.nodes import COARSEST_STEP
from teacher_cache.read.cache import Cache, open_cache

VOCAB, WIDTH, ROWS, LENGTH = 90, 40, 12, 10
KINDS: dict[str, dict[str, Any]] = {
    "bucket": {"top_k": 6},
    "sampled": {"top_k": 4, "samples": 12},
    "everything": {"top_k": VOCAB},
    "exact": {"top_k": 1, "mode": "exact"},
}


class Case:
    """A random student over a synthetic cache, with the teacher's logits as it had them."""

    def __init__(self, path: Path, kind: str) -> None:
        sizes = SyntheticSettings(
            rows=ROWS,
            seq_len=LENGTH,
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            dtype="float32",
            value_dtype="float32",
            **KINDS[kind],
        )
        self.cache: Cache = open_cache(make_synthetic_cache(path, **vars(sizes)))
        self.batch = Batch.of(self.cache.rows(range(ROWS)), self.cache, torch.device("cpu"))
        self.batch.loss_mask[::3, 4:] = False
        frozen = read_frozen_weights(
            self.cache.frozen_weights, padded_vocab_size=VOCAB, vocab_size=VOCAB, hidden_size=WIDTH
        )
        assert frozen.lm_head is not None
        self.head = FrozenHead(frozen.lm_head)
        self.hidden = torch.randn(ROWS, LENGTH, WIDTH, generator=torch.Generator().manual_seed(3))
        before = torch.cat([torch.zeros(ROWS, 1, dtype=torch.int64), self.batch.inputs[:, :-1]], dim=1)
        teacher = SyntheticTeacher(sizes)
        logits = teacher.logits(teacher.states(self.batch.inputs.flatten(), before.flatten()))
        mask = self.batch.loss_mask
        self.teacher = logits.view(ROWS, LENGTH, VOCAB)[mask].double()
        self.student = self.head.logits(self.hidden)[mask].double()
        self.labels = self.batch.labels[mask]

    def found(self, **options: Any) -> StudentPositions:
        batch = self.batch
        return student_positions(self.hidden, self.head, batch.labels, batch.loss_mask, batch.targets, **options)


def at_labels(logits: Tensor, labels: Tensor) -> Tensor:
    return -logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]


@pytest.mark.parametrize("chunk_tokens", [None, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_the_student_is_that_of_whole_vectors(tmp_path: Path, kind: str, chunk_tokens: int | None) -> None:
    case = Case(tmp_path / "cache", kind)
    found = case.found(chunk_tokens=chunk_tokens)
    torch.testing.assert_close(found.cross_entropy.double(), at_labels(case.student, case.labels), rtol=1e-5, atol=1e-5)
    p = case.student.softmax(-1)
    torch.testing.assert_close(found.confidence.double(), p.amax(-1), rtol=1e-5, atol=1e-6)
    assert torch.equal(found.correct, p.argmax(-1) == case.labels)
    assert found.agreement is not None
    assert torch.equal(found.agreement, p.argmax(-1) == case.teacher.argmax(-1))


@pytest.mark.parametrize("kind", ["everything", "exact"])
def test_kl_is_that_of_whole_vectors_where_all_is_known(tmp_path: Path, kind: str) -> None:
    case = Case(tmp_path / "cache", kind)
    found = case.found().kl
    assert found is not None
    torch.testing.assert_close(found.double(), dense_kl(case.teacher, case.student, 1.0), rtol=1e-4, atol=1e-4)


def test_a_student_with_a_head_of_its_own_is_compared_with_the_teachers(tmp_path: Path) -> None:
    case = Case(tmp_path / "cache", "exact")
    batch = case.batch
    own = FrozenHead(case.head.weight + 0.1 * torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(4)))
    where = (batch.labels, batch.loss_mask, batch.targets)
    found = student_positions(case.hidden, own, *where, teacher_head=case.head)
    assert found.kl is not None
    student = own.logits(case.hidden)[batch.loss_mask].double()
    torch.testing.assert_close(found.kl.double(), dense_kl(case.teacher, student, 1.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cross_entropy.double(), at_labels(student, case.labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_is_that_of_whole_vectors(tmp_path: Path, kind: str) -> None:
    case = Case(tmp_path / "cache", kind)
    batch = case.batch
    found = teacher_positions(case.head, batch.labels, batch.loss_mask, batch.targets, chunk_tokens=11)
    p, truth = case.teacher.softmax(-1), at_labels(case.teacher, case.labels)
    error = 1e-4 + (COARSEST_STEP / 2 if kind == "sampled" else 2e-4)  # of log Z
    torch.testing.assert_close(found.confidence.double(), p.amax(-1), rtol=error, atol=1e-5)
    assert torch.equal(found.correct, p.argmax(-1) == case.labels)
    torch.testing.assert_close(found.cross_entropy[found.known].double(), truth[found.known], rtol=0, atol=error)
    assert (found.cross_entropy <= truth + error).all()
    assert found.known.all() == (kind in ("everything", "exact"))
    assert found.known.any()


def test_without_targets_there_is_no_teacher(tmp_path: Path) -> None:
    case = Case(tmp_path / "cache", "sampled")
    batch = case.batch
    alone = student_positions(case.hidden, case.head, batch.labels, batch.loss_mask, None)
    assert alone.kl is None
    assert alone.agreement is None
    assert torch.equal(alone.cross_entropy, case.found().cross_entropy)


def test_a_batch_without_counted_positions_has_none(tmp_path: Path) -> None:
    case = Case(tmp_path / "cache", "sampled")
    case.batch.loss_mask[:] = False
    assert len(case.found().cross_entropy) == 0


def test_sampled_kl_is_right_on_average_and_a_bucket_sees_less(tmp_path: Path) -> None:
    sampled, bucket = Case(tmp_path / "sampled", "sampled"), Case(tmp_path / "bucket", "bucket")
    found, least = sampled.found().kl, bucket.found().kl
    assert found is not None
    assert least is not None
    off = found.double() - dense_kl(sampled.teacher, sampled.student, 1.0)
    assert off.abs().max() > 0.01
    assert off.mean().abs() < 3 * off.std() / len(off) ** 0.5
    assert (least <= dense_kl(bucket.teacher, bucket.student, 1.0) + 1e-4).all()
