"""Held-out numbers: cross-entropy, perplexity, KL to the teacher at T = 1, top-1 agreement."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from student.assemble import Run
from student.batch import Batch
from student.loss import EvaluationSums, evaluation_sums
from teacher_cache.decode import CachedRows
from teacher_cache.reader import Cache


@dataclass(frozen=True)
class Measures:
    """Means over the valid positions of held-out rows: cross_entropy of the true next token and kl, teacher to
    student at T = 1, in nats; perplexity exp(cross_entropy); agreement, the share of positions where both
    have the same first choice.
    """

    cross_entropy: float
    perplexity: float
    kl: float
    agreement: float
    tokens: int


def measure(run: Run, step: int) -> Measures | None:
    """The student's held-out numbers after `step` steps, recorded in `evaluation.jsonl` or measured now.

    None when no evaluation cache is set. Every process takes its share of the rows and calls this.
    """
    if run.held_out is None:
        return None
    known = recorded(run, step)
    if known is not None:
        return known
    key = _key(run, run.held_out, step)
    measures = evaluate(run, run.held_out, key["rows"])
    if run.processes.rank == 0:
        run.measurements.append(key | asdict(measures))
        if run.engine.monitor.enabled:
            run.engine.monitor.write_events([(f"held_out/{name}", v, step) for name, v in asdict(measures).items()])
    return measures


def recorded(run: Run, step: int) -> Measures | None:
    """The numbers after `step` steps if `evaluation.jsonl` has them for this evaluation cache and these rows."""
    if run.held_out is None:
        return None
    key = _key(run, run.held_out, step)
    for record in run.measurements.read():
        if {name: record[name] for name in key} == key:
            return Measures(**{name: value for name, value in record.items() if name not in key})
    return None


def evaluate(run: Run, cache: Cache, rows: int) -> Measures:
    """Measure the student over the first `rows` rows of a cache, split over processes."""
    size, processes = run.settings.training.micro_batch_size, run.processes
    total = EvaluationSums(cross_entropy=0.0, kl=0.0, agreement=0, tokens=0)
    run.engine.eval()
    with torch.no_grad():
        for first in range(0, rows, size * processes.world_size):
            share = _share(cache, first + processes.rank * size, size, rows)
            batch = Batch.of(share, cache, processes.device)
            hidden_states = run.engine(batch.inputs, batch.document_start)
            total += evaluation_sums(hidden_states, run.student.head, batch.labels, batch.loss_mask, batch.targets)
    run.engine.train()
    sums = torch.tensor([total.cross_entropy, total.kl, total.agreement, total.tokens], dtype=torch.float64)
    cross_entropy, kl, agreement, tokens = processes.sum(sums.to(processes.device)).tolist()
    mean = cross_entropy / tokens
    return Measures(mean, math.exp(min(mean, 700.0)), kl / tokens, agreement / tokens, int(tokens))


def _share(cache: Cache, first: int, size: int, rows: int) -> CachedRows:
    """Rows [first, first + size), as far as there are any; else one row that counts nothing.

    Under ZeRO 3 a process without rows would leave the others waiting for its part of the parameters.
    """
    if first < rows:
        return cache.rows(range(first, min(first + size, rows)))
    idle = cache.rows(range(1))
    return CachedRows(**(vars(idle) | {"loss_mask": np.zeros_like(idle.loss_mask)}))


def _key(run: Run, cache: Cache, step: int) -> dict[str, Any]:
    rows = min(len(cache), run.settings.evaluation.max_rows or len(cache))
    return {"step": step, "cache": cache.fingerprint, "rows": rows}
