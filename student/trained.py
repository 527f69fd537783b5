"""A trained student for use: out of a run's folder, around the frozen matrices of a cache, or out of an export."""

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

EXPORT_FILE = "config.json"
EXPORT_TYPE = "distil_xlstm"
EXPORT_ROWS = 8
"""Put through an exported student at a time."""


@dataclass(frozen=True)
class TrainedStudent:
    """A student, and how many rows to put through it at a time."""

    model: XLSTMStudent
    rows: int


def load_student(path: Path, cache: Cache, device: torch.device) -> TrainedStudent:
    """The student of a run's folder, or of an export, for rows like those of `cache`.

    Raises `UserError` when the folder is neither, the run has not finished, or the cache is of another teacher,
    tokenizer or context.
    """
    return _exported(path, cache, device) if is_export(path) else _of_run(path, cache, device)


def is_export(path: Path) -> bool:
    """Whether a folder is a model as student-export writes it, and not a run."""
    return (path / EXPORT_FILE).is_file()


def _of_run(path: Path, cache: Cache, device: torch.device) -> TrainedStudent:
    settings, summary = read_settings(path), read_summary(path)
    _require_same_teacher(path, summary, cache)
    student = initial_student(_computable(settings, device), cache, device)
    file = path / TRAINED_FILE
    try:
        student.load_state_dict(load_file(file))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{file}: not the parameters of this run's student; run student-train again") from error
    return TrainedStudent(student.eval().requires_grad_(False), settings.training.micro_batch_size)


def _computable(settings: TrainSettings, device: torch.device) -> TrainSettings:
    """In the precision it was trained in, on a CPU in float32: 16 bits are slow there and no more exact."""
    if device.type != "cpu":
        return settings
    return settings.model_copy(update={"training": settings.training.model_copy(update={"precision": "fp32"})})


def _require_same_teacher(path: Path, summary: RunSummary, cache: Cache) -> None:
    manifest = cache.manifest
    same = {
        "teacher": summary.teacher_weights_sha256 == manifest.teacher.weights_sha256,
        "tokenizer": summary.tokenizer_sha256 == manifest.tokenizer_sha256,
        "rows.context": summary.context == manifest.rows.context,
    }
    for name, is_same in same.items():
        if not is_same:
            raise UserError(
                f"--cache {cache.path}: another {name} than {path} was trained with; give a cache of the same"
            )


def _exported(path: Path, cache: Cache, device: torch.device) -> TrainedStudent:
    found = _export_type(path)
    if found != EXPORT_TYPE:
        raise UserError(
            f"{path}: a model of type {found!r}, not {EXPORT_TYPE!r}; give a run or a folder of student-export"
        )
    importlib.import_module("student.hf")
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: not a whole export ({error}); run student-export again") from error
    student: XLSTMStudent = model.student
    wanted = cache.manifest.vocab_size, cache.manifest.hidden_size
    if tuple(student.head.weight.shape) != wanted:
        raise UserError(f"--cache {cache.path}: another teacher than that of {path}; give a cache of the same")
    dtype = torch.float32 if device.type == "cpu" else student.head.weight.dtype
    return TrainedStudent(student.to(device, dtype).eval().requires_grad_(False), EXPORT_ROWS)


def _export_type(path: Path) -> Any:
    try:
        return json.loads((path / EXPORT_FILE).read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / EXPORT_FILE}: not a model's configuration; run student-export again") from error
