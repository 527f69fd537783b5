"""A trained student to measure or to write with: from an export, or from a run and a cache's frozen matrices."""

from dataclasses import dataclass
from pathlib import Path

import torch

from delta_common.errors import UserError
from delta_common.tokenizer import is_digest_of
from student.inference.hf_config import StudentConfig
from student.inference.load import CONFIG_FILE, Writer, is_export, is_ours, load_export, load_model, read_config
from student.inference.plain import load_plain
from student.model.frozen import FrozenHead
from student.model.student import Student
from student.run.causal_lm import require_fit_to, require_tokenizer
from student.run.files import (
    SETTINGS_FILE,
    TRAINED_FILE,
    RunSummary,
    read_plain_provenance,
    read_settings,
    read_summary,
)
from student.run.student import load_trained, student_of_run, teacher_head
from student.settings import TrainSettings
from teacher_cache.read.cache import Cache, open_cache

EXPORT_ROWS = 8
"""Rows put through an exported student at a time."""


@dataclass(frozen=True)
class TrainedStudent:
    """A student, and how many rows to put through it at a time."""

    model: Student
    rows: int
    teacher_head: FrozenHead | None = None
    """The teacher's, where its targets are computed with it and the student has another."""


def load_student(path: Path, cache: Cache, device: torch.device) -> TrainedStudent:
    """The student of a run's folder or an export, on `device`, for rows like those of `cache`.

    Raises `UserError` when the folder is neither, the run has not finished, or the cache is of another teacher,
    tokenizer or context.
    """
    return _exported(path, cache, device) if is_export(path) else _of_run(path, cache, device)


def load_any_writer(path: Path, device: torch.device) -> Writer:
    """The student of an export or of a finished run, to write with; raises as `load_export` and `load_writer`."""
    if is_export(path) or not (path / SETTINGS_FILE).is_file():
        return load_export(path, device)
    return load_writer(path, device)


def load_writer(run: Path, device: torch.device) -> Writer:
    """The student of a finished run, to write with: the run's cache has its frozen matrices and its tokenizer.

    Raises `UserError` when the run has not finished, or its cache is not where it was, or has no tokenizer.
    """
    from transformers import AutoTokenizer

    summary = read_summary(run)
    instead = "if it has moved, write with what student-export --cache makes of the run"
    try:
        cache = open_cache(summary.cache)
    except UserError as error:
        raise UserError(f"{error} ({run} was trained on it; {instead})") from error
    if cache.tokenizer_folder is None:
        raise UserError(f"{summary.cache}: a cache without a tokenizer; its students take tokens, not text")
    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder)
    if not is_digest_of(tokenizer, summary.tokenizer_sha256):
        raise UserError(f"{cache.tokenizer_folder}: not the tokenizer that {run} was trained with; {instead}")
    return Writer(load_student(run, cache, device).model, tokenizer, cache.manifest.eos_token_id)


def _of_run(path: Path, cache: Cache, device: torch.device) -> TrainedStudent:
    settings, summary = read_settings(path), read_summary(path)
    _require_same_teacher(path, summary, cache)
    student = student_of_run(path, _computable(settings, device), cache, device)
    # As trained: a cache of an earlier version does not say how its teacher scales the embedding.
    student.embedding_scale, student.logit_transform = summary.embedding_scale, summary.logit_transform
    load_trained(student, path / TRAINED_FILE)
    student.eval().requires_grad_(False)
    head = teacher_head(student, [cache], device, student.embedding.dtype)
    return TrainedStudent(student, settings.training.micro_batch_size, head)


def _computable(settings: TrainSettings, device: torch.device) -> TrainSettings:
    """On a CPU in float32, elsewhere in the precision of training: on a CPU 16 bits are slow, and not more exact."""
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
    _require(path, same, cache)


def _require(path: Path, same: dict[str, bool], cache: Cache) -> None:
    for name, is_same in same.items():
        if not is_same:
            raise UserError(
                f"--cache {cache.path}: another {name} than {path} was trained with; give a cache of the same"
            )


def _exported(path: Path, cache: Cache, device: torch.device) -> TrainedStudent:
    if not is_ours(path):
        return _plain(path, cache, device)
    _require_fit(path, read_config(path), cache)
    student = load_model(path, torch.float32 if device.type == "cpu" else "auto").student
    student.to(device).eval().requires_grad_(False)
    head = teacher_head(student, [cache], device, student.embedding.dtype)
    return TrainedStudent(student, EXPORT_ROWS, head)


def _plain(path: Path, cache: Cache, device: torch.device) -> TrainedStudent:
    """A model of transformers, exported or not: it need have no more to do with the cache's teacher than its tokens."""
    require_tokenizer(path, cache, str(path))
    said = read_plain_provenance(path)
    if said is not None and said.context != cache.manifest.rows.context:
        _require(path, {"rows.context": False}, cache)
    student = load_plain(path, cache.manifest.vocab_size)
    require_fit_to(student, cache, str(path))
    student.to(device).eval().requires_grad_(False)
    return TrainedStudent(student, EXPORT_ROWS, teacher_head(student, [cache], device, torch.float32))


def _require_fit(path: Path, config: StudentConfig, cache: Cache) -> None:
    manifest = cache.manifest
    try:
        said = config.provenance or {}
        weights, context = said["teacher"]["weights_sha256"], said["context"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path / CONFIG_FILE}: its provenance does not name its teacher's weights and rows.context; "
            "run student-export again"
        ) from error
    same = {
        "teacher": weights == manifest.teacher.weights_sha256,
        "tokenizer": config.tokenizer_sha256 == manifest.tokenizer_sha256,
        "rows.context": context == manifest.rows.context,
    }
    _require(path, same, cache)
