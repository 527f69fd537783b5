"""Held-out numbers while training: cross-entropy, perplexity, KL from the teacher at T = 1, agreement, calibration."""

from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch

from student.data.batch import Batch
from student.evaluate.calibration import BINS, bin_sums, calibration_error, equal_width_edges, perplexity
from student.evaluate.positions import StudentPositions, student_positions
from student.model.frozen import FrozenHead
from student.model.student import asked_at_head
from student.train.assemble import Run
from teacher_cache.read.cache import Cache
from teacher_cache.read.decode import CachedRows

SUMS = 5
"""Sums over positions besides those of the bins."""


@dataclass(frozen=True)
class Measures:
    """Means over the valid positions of held-out rows."""

    cross_entropy: float
    """Of the true next token, in nats."""
    perplexity: float
    """exp(cross_entropy)"""
    kl: float
    """KL(teacher ‖ student) at T = 1, in nats."""
    agreement: float
    """Share of positions where student and teacher have the same first choice."""
    accuracy: float
    """Share of positions where the student's first choice is the next token."""
    calibration_error: float
    """Over 15 bins of equal width."""
    tokens: int
    """Valid positions."""


def measure(run: Run, step: int) -> tuple[Measures, ...]:
    """The student's held-out numbers after `step` steps, from `evaluation.jsonl` or else measured and recorded now.

    On each held-out cache by itself. Every process calls this and takes its share of the rows.
    """
    return tuple(_known(run, cache, step) or _measure(run, cache, step) for cache in run.held_out)


def recorded(run: Run, step: int) -> tuple[Measures | None, ...]:
    """For each held-out cache the numbers after `step` steps, if `evaluation.jsonl` has them for these rows."""
    return tuple(_known(run, cache, step) for cache in run.held_out)


def _measure(run: Run, cache: Cache, step: int) -> Measures:
    key = _key(run, cache, step)
    measures = evaluate(run, cache, key["rows"])
    if run.processes.rank == 0:
        named = {"path": str(cache.path)} if len(run.held_out) > 1 else {}
        run.measurements.append(key | named | asdict(measures))
        if run.engine.monitor.enabled:
            group = f"held_out/{named['path']}" if named else "held_out"
            run.engine.monitor.write_events([(f"{group}/{name}", v, step) for name, v in asdict(measures).items()])
    return measures


def _known(run: Run, cache: Cache, step: int) -> Measures | None:
    key = _key(run, cache, step)
    names = {field.name for field in fields(Measures)}
    for record in run.measurements.read():
        if record.items() >= key.items() and record.keys() >= names:
            return Measures(**{name: record[name] for name in names})
    return None


def evaluate(run: Run, cache: Cache, rows: int, *, teacher_head: FrozenHead | None = None) -> Measures:
    """Measure the student over the first `rows` rows of a cache, split over processes.

    `teacher_head` is the teacher's LM head where the student's own is trained.
    """
    size, processes = run.settings.training.micro_batch_size, run.processes
    sums = torch.zeros(SUMS + 3 * BINS, dtype=torch.float64)
    run.engine.eval()
    with torch.no_grad():
        for first in range(0, rows, size * processes.world_size):
            share = _share(cache, first + processes.rank * size, size, rows)
            batch = Batch.of(share, cache, processes.device)
            ask = partial(_sums_at_head, run, batch, teacher_head or run.teacher_head)
            sums += asked_at_head(run.engine, run.student, batch.inputs, batch.document_start, ask).cpu()
    run.engine.train()
    return _measures(processes.sum(sums.to(processes.device)).cpu())


def _sums_at_head(run: Run, batch: Batch, teacher_head: FrozenHead | None, hidden_states: torch.Tensor) -> torch.Tensor:
    where = (batch.labels, batch.loss_mask, batch.targets)
    return _sums(student_positions(hidden_states, run.student.head, *where, teacher_head=teacher_head))


def _sums(found: StudentPositions) -> torch.Tensor:
    """Over positions: their number, cross-entropy, KL, agreement, accuracy, then the bins' sums."""
    assert found.kl is not None
    assert found.agreement is not None
    columns = (torch.ones_like(found.kl), found.cross_entropy, found.kl, found.agreement, found.correct)
    bins = bin_sums(found.confidence.cpu().numpy(), found.correct.cpu().numpy(), equal_width_edges())
    return torch.cat([torch.stack([c.double().sum().cpu() for c in columns]), torch.from_numpy(bins).flatten()])


def _measures(sums: torch.Tensor) -> Measures:
    tokens, *totals = sums[:SUMS].tolist()
    cross_entropy, kl, agreement, accuracy = (total / tokens for total in totals)
    return Measures(
        cross_entropy=cross_entropy,
        perplexity=perplexity(cross_entropy),
        kl=kl,
        agreement=agreement,
        accuracy=accuracy,
        calibration_error=float(calibration_error(sums[SUMS:].view(BINS, 3).numpy())),
        tokens=int(tokens),
    )


def _share(cache: Cache, first: int, size: int, rows: int) -> CachedRows:
    """Rows [first, first + size) as far as there are any; else one row without valid positions.

    Under ZeRO 3 a process that ran no rows would leave the others waiting for its part of the parameters.
    """
    if first < rows:
        return cache.rows(range(first, min(first + size, rows)))
    idle = cache.rows(range(1))
    return CachedRows(idle.manifest, {**idle.arrays, "loss_mask": np.zeros_like(idle.loss_mask)})


def _key(run: Run, cache: Cache, step: int) -> dict[str, Any]:
    rows = min(len(cache), run.settings.evaluation.max_rows or len(cache))
    return {"step": step, "cache": cache.fingerprint, "rows": rows}
