"""Held-out figures of a student against the teacher's whole distribution at T = 1, out of an exact cache."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from student.data.batch import Batch
from student.evaluate.calibration import bin_sums, calibration_error, equal_width_edges
from student.loss.divergence import dense_kl
from student.model.frozen import FrozenHead, read_frozen_weights
from student.model.xlstm import XLSTMStudent
from teacher_cache.read.cache import Cache

BINS = 15
BATCH_ROWS = 16


@dataclass(frozen=True)
class Figures:
    """Means over counted positions: cross_entropy of the true next token and kl, teacher to student, in nats;
    agreement, the share where both have the same first choice; calibration_error over 15 bins of equal width.
    """

    cross_entropy: float
    kl: float
    agreement: float
    calibration_error: float

    def as_record(self) -> dict[str, float]:
        return asdict(self)


@torch.no_grad()
def measure_student(student: XLSTMStudent, teacher_head: FrozenHead, held_out: Cache, device: torch.device) -> Figures:
    """Over all rows of a cache in exact mode; the teacher's head is not the student's where that has been trained."""

    def logits(batch: Batch) -> Tensor:
        hidden: Tensor = student(batch.inputs, batch.document_start)
        return student.head.logits(hidden[batch.loss_mask])

    was_training = student.training
    student.eval()
    found = [_positions(logits(batch), teacher_head, batch) for batch in _batches(held_out, device)]
    student.train(was_training)
    return _figures(found)


@torch.no_grad()
def measure_teacher(held_out: Cache) -> Figures:
    """The teacher's own figures on the same rows."""
    manifest, device = held_out.manifest, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    frozen = read_frozen_weights(
        held_out.frozen_weights,
        padded_vocab_size=manifest.padded_vocab_size,
        vocab_size=manifest.vocab_size,
        hidden_size=manifest.hidden_size,
    )
    weight = frozen.embedding if frozen.lm_head is None else frozen.lm_head
    bias = None if frozen.lm_head_bias is None else frozen.lm_head_bias[: manifest.vocab_size].to(device)
    head = FrozenHead(weight[: manifest.vocab_size].to(device), bias)
    batches = _batches(held_out, device)
    return _figures([_positions(_teacher_logits(head, batch), head, batch) for batch in batches])


def _batches(cache: Cache, device: torch.device) -> list[Batch]:
    spans = [range(first, min(first + BATCH_ROWS, len(cache))) for first in range(0, len(cache), BATCH_ROWS)]
    return [Batch.of(cache.rows(span), cache, device) for span in spans]


def _teacher_logits(head: FrozenHead, batch: Batch) -> Tensor:
    assert batch.targets.final_hidden is not None
    return head.logits(batch.targets.final_hidden[batch.loss_mask])


def _positions(logits: Tensor, teacher_head: FrozenHead, batch: Batch) -> Tensor:
    """Cross-entropy, KL, agreement, confidence and correctness, (5, n)."""
    labels, teacher = batch.labels[batch.loss_mask], _teacher_logits(teacher_head, batch)
    confidence, choice = logits.softmax(dim=-1).max(dim=-1)
    columns = (
        functional.cross_entropy(logits, labels, reduction="none"),
        dense_kl(teacher, logits, 1.0),
        choice == teacher.argmax(dim=-1),
        confidence,
        choice == labels,
    )
    return torch.stack([column.double() for column in columns]).cpu()


def _figures(found: list[Tensor]) -> Figures:
    cross_entropy, kl, agreement, confidence, correct = torch.cat(found, dim=1).numpy()
    return Figures(
        cross_entropy=float(cross_entropy.mean()),
        kl=float(kl.mean()),
        agreement=float(agreement.mean()),
        calibration_error=float(calibration_error(bin_sums(confidence, correct > 0, equal_width_edges())[0])),
    )
