"""A trained student out of a run's folder, around the frozen matrices of a cache of its teacher."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cli_common.errors import UserError
from student.assemble import initial_student
from student.job import TRAINED_FILE
from student.models.xlstm import XLSTMStudent
from student.run_files import RunSummary, read_settings, read_summary
from student.settings import TrainSettings
from teacher_cache.reader import Cache


@dataclass(frozen=True)
class TrainedStudent:
    """A student for use, and what its run was told."""

    model: XLSTMStudent
    settings: TrainSettings


def load_student(path: Path, cache: Cache, device: torch.device) -> TrainedStudent:
    """The student that the run in folder `path` trained, with embedding and LM head from `cache`.

    Raises `UserError` when there is no finished run, or the cache is of another teacher, tokenizer or context.
    """
    settings, summary = read_settings(path), read_summary(path)
    _require_same_teacher(path, summary, cache)
    student = initial_student(settings, cache, device)
    file = path / TRAINED_FILE
    try:
        student.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{file}: not the parameters of this run's student; run student-train again") from error
    return TrainedStudent(student.eval().requires_grad_(False), settings)


def _require_same_teacher(path: Path, summary: RunSummary, cache: Cache) -> None:
    manifest = cache.manifest
    same = {
        "teacher": summary.teacher_weights_sha256 == manifest.teacher.weights_sha256,
        "tokenizer": summary.tokenizer_sha256 == manifest.tokenizer_sha256,
        "rows.context": summary.context == manifest.rows.context,
    }
    for name, is_same in same.items():
        if not is_same:
            raise UserError(f"{cache.path}: another {name} than {path} was trained with; give a cache of the same")
