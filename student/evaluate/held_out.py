"""A student on held-out rows, by document, beside its teacher: what `student-eval` measures."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delta_common.errors import UserError
from student.data.batch import Batch
from student.evaluate.bootstrap import Interval, intervals
from student.evaluate.calibration import (
    BINS,
    bin_sums,
    calibration_error,
    equal_mass_edges,
    equal_width_edges,
    perplexity,
)
from student.evaluate.positions import student_positions, teacher_positions
from student.model.frozen import FrozenHead
from teacher_cache.format.arrays import ROLES
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows

MEANS = {"cross_entropy": "cross_entropy", "kl": "kl", "agreement": "agreement", "accuracy": "correct"}
"""Measures that are means over positions, and what they are means of."""

Columns = dict[str, NDArray[Any]]
"""One array (n,) per measure, over n valid positions."""


class Student(Protocol):
    """A model to measure: tokens (B, T) to hidden states (B, T, d), and the LM head for them."""

    @property
    def head(self) -> FrozenHead: ...

    def __call__(self, tokens: Tensor, document_start: Tensor | None = None) -> Tensor: ...


@dataclass(frozen=True)
class Scores:
    """Held-out numbers of a student or a teacher at T = 1, each with its interval; None where one is not known."""

    cross_entropy: Interval | None = None
    """Of the true next token, in nats per token."""
    perplexity: Interval | None = None
    """exp(cross_entropy)"""
    kl: Interval | None = None
    """KL(teacher ‖ student), in nats per token."""
    agreement: Interval | None = None
    """Share of positions where student and teacher have the same first choice."""
    accuracy: Interval | None = None
    """Share of positions where the first choice is the next token."""
    calibration_error: Interval | None = None
    """Over 15 bins of equal width."""
    adaptive_calibration_error: Interval | None = None
    """Over 15 bins of equal mass."""


@dataclass(frozen=True)
class HeldOut:
    """A measurement of a student."""

    student: Scores
    teacher: Scores | None
    """None where nothing of the teacher is cached for these rows."""
    tokens: int
    """Valid positions."""
    rows: int
    by_document: list[dict[str, float]]
    """For each document in order, its tokens and the student's means over them."""
    by_role: dict[str, dict[str, float]] = field(default_factory=dict)
    """The same by who speaks the next token; empty where documents are plain text."""


def measure_held_out(
    student: Student,
    cache: Cache,
    rows: Iterable[CachedRows],
    device: torch.device,
    *,
    teacher_head: FrozenHead | None = None,
) -> HeldOut:
    """Measure the student on rows in their order, and beside it the teacher where the rows have its targets.

    `teacher_head` is the teacher's where the student's is another, for a cache in exact mode. The rows are the cache's,
    whose targets must be known at T = 1, or rows of text with the same tokenizer and context and no targets. Raises
    `UserError` when there are no valid positions.
    """
    documents, ours, theirs, count = DocumentNumbers(), [], [], 0
    teacher_head = teacher_head or student.head
    for part in rows:
        batch = Batch.of(part, cache, device)
        document = {"document": documents.of(part.document_start)[part.loss_mask], **_role_column(part)}
        known = part.ids is not None or part.final_hidden is not None
        ours.append(_student_columns(student, batch, teacher_head, known=known) | document)
        if known:
            theirs.append(_teacher_columns(teacher_head, batch) | document)
        count += len(part.tokens)
    if not sum(len(part["document"]) for part in ours):
        raise UserError("no position counts in the rows of --cache or --corpus; give more text")
    columns = _joined(ours)
    scores = scores_of(columns, lower_bounds={"kl"} if theirs and _is_bucketed(cache) else set())
    teacher = _teacher_scores(_joined(theirs), cache) if theirs else None
    return HeldOut(scores, teacher, len(columns["document"]), count, by_document(columns), by_role(columns))


def teacher_scores(head: FrozenHead, cache: Cache, rows: Iterable[CachedRows], device: torch.device) -> Scores:
    """The teacher's own scores on rows of a cache in their order, with no student."""
    documents, found = DocumentNumbers(), []
    for part in rows:
        document = {"document": documents.of(part.document_start)[part.loss_mask]}
        found.append(_teacher_columns(head, Batch.of(part, cache, device)) | document)
    return _teacher_scores(_joined(found), cache)


def rows_in_order(cache: Cache, size: int, count: int | None = None) -> Iterator[CachedRows]:
    """The first `count` rows of a cache, or all, in parts of at most `size`; shards are read whole."""
    wanted = len(cache) if count is None else count
    for shard in cache.shards:
        here = range(shard.start, min(shard.stop, wanted))
        if here:
            rows = cache.rows(here)
            yield from (rows.select(slice(first, first + size)) for first in range(0, len(here), size))


class DocumentNumbers:
    """Numbers documents over rows in order; a packed row may continue the document that the row before ended in."""

    def __init__(self) -> None:
        self._next = 0

    def of(self, document_start: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The document's number at every position of the next rows, (B, T) like `document_start`."""
        counted = np.cumsum(document_start.reshape(-1)) + self._next
        self._next = int(counted[-1])
        # Rows cut out of the middle of a corpus begin with a document whose start is not among them.
        numbers: NDArray[np.int64] = counted.reshape(document_start.shape).astype(np.int64)
        return numbers


def scores_of(columns: Columns, lower_bounds: Iterable[str] = ()) -> Scores:
    """All scores that the columns allow; those named in `lower_bounds` are marked as such."""
    document = np.unique(columns["document"], return_inverse=True)[1]
    groups = int(document.max()) + 1
    names = [name for name, column in MEANS.items() if column in columns]
    counts = np.bincount(document, minlength=groups).astype(np.float64)
    totals = [_totals(columns[MEANS[name]], document) for name in names]
    confidence, correct = columns["confidence"], columns["correct"]
    edges = (equal_width_edges(), equal_mass_edges(confidence))
    bins = [bin_sums(confidence, correct, e, document, groups).reshape(groups, -1) for e in edges]
    sums = np.concatenate([np.stack([counts, *totals], axis=1), *bins], axis=1)

    def statistic(drawn: NDArray[np.float64]) -> NDArray[np.float64]:
        tokens, means, *binned = np.split(drawn, [1, 1 + len(names), 1 + len(names) + 3 * BINS], axis=-1)
        errors = [calibration_error(b.reshape(*b.shape[:-1], BINS, 3))[..., None] for b in binned]
        return np.concatenate([means / tokens, *errors], axis=-1)

    names_of_errors = ["calibration_error", "adaptive_calibration_error"]
    found_intervals = intervals(sums, statistic, distances=len(names_of_errors))
    found = dict(zip([*names, *names_of_errors], found_intervals, strict=True))
    found |= {name: replace(found[name], at_least=True) for name in lower_bounds}
    return Scores(**found, perplexity=_exponential(found["cross_entropy"]))


def by_document(columns: Columns) -> list[dict[str, float]]:
    """Each document's tokens and means, in order."""
    document = np.unique(columns["document"], return_inverse=True)[1]
    counts = np.bincount(document)
    means = {name: _totals(columns[key], document) / counts for name, key in MEANS.items() if key in columns}
    return [{"tokens": int(n), **{name: float(mean[d]) for name, mean in means.items()}} for d, n in enumerate(counts)]


def by_role(columns: Columns) -> dict[str, dict[str, float]]:
    """Each role's tokens and means, of conversations."""
    if "role" not in columns:
        return {}
    names = [ROLES[code] for code in np.unique(columns["role"])]
    return dict(zip(names, by_document(columns | {"document": columns["role"]}), strict=True))


def _role_column(rows: CachedRows) -> Columns:
    return {} if rows.role is None else {"role": rows.role[rows.loss_mask]}


def _totals(column: NDArray[Any], document: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sums of a column (n,) over each document."""
    return np.bincount(document, weights=column.astype(np.float64)).astype(np.float64)


def _teacher_scores(columns: Columns, cache: Cache) -> Scores:
    """The teacher's scores. Where a next token was not kept, cross-entropy comes from the commit records instead.

    They have it from all logits, but only for all rows of a shard together: it has no interval.
    """
    scores = scores_of(columns)
    if columns["known"].all():
        return scores
    assert scores.cross_entropy is not None
    records = [commit for commit in cache.commits.values() if "cross_entropy" in commit.statistics]
    positions = sum(commit.positions for commit in records)
    if positions == len(columns["known"]):
        mean = Interval(sum(commit.statistics["cross_entropy"] for commit in records) / positions)
    else:
        mean = Interval(scores.cross_entropy.value, at_least=True)
    return replace(scores, cross_entropy=mean, perplexity=_exponential(mean))


@torch.no_grad()
def _student_columns(student: Student, batch: Batch, teacher_head: FrozenHead, *, known: bool) -> Columns:
    """Every measure at a batch's counted positions; those of the teacher where it is known."""
    hidden_states = student(batch.inputs, batch.document_start)
    targets = batch.targets if known else None
    where = (batch.labels, batch.loss_mask, targets)
    found = student_positions(hidden_states, student.head, *where, teacher_head=teacher_head)
    return _numpy({name: value for name, value in vars(found).items() if value is not None})


def _teacher_columns(head: FrozenHead, batch: Batch) -> Columns:
    return _numpy(vars(teacher_positions(head, batch.labels, batch.loss_mask, batch.targets)))


def _numpy(fields: dict[str, Tensor]) -> Columns:
    return {name: value.cpu().numpy() for name, value in fields.items()}


def _joined(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _is_bucketed(cache: Cache) -> bool:
    """Whether the teacher's rest is one bucket, which makes KL a lower bound."""
    return cache.layout.mode == "sparse" and not cache.layout.samples


def _exponential(mean: Interval) -> Interval:
    low, high = (None if end is None else perplexity(end) for end in (mean.low, mean.high))
    return Interval(perplexity(mean.value), low, high, mean.at_least)
