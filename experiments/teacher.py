"""What the teacher itself scores on the held-out rows."""

import json

import torch

from delta_common.files import write_atomically
from experiments.plan import Folder
from student.evaluate.held_out import Scores, rows_in_order, teacher_scores
from student.run.student import frozen_weights_of
from teacher_cache.read.cache import Cache, open_cache

BATCH_ROWS = 16


def write_teacher_scores(folder: Folder) -> None:
    """Write the teacher's cross-entropy and calibration error to `teacher.json`, unless it is there."""
    if folder.teacher_scores.exists():
        return
    scores = held_out_scores(open_cache(folder.cache("held-out")))
    values = {name: getattr(scores, name).value for name in ("cross_entropy", "calibration_error")}
    write_atomically(folder.teacher_scores, json.dumps(values, indent=1).encode())


def held_out_scores(cache: Cache) -> Scores:
    """The teacher's scores on all rows of a cache in exact mode."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    head = frozen_weights_of(cache).head.to(device)
    return teacher_scores(head, cache, rows_in_order(cache, BATCH_ROWS), device)
