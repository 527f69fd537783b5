"""An export loaded for use: the student and its tokenizer. Needs neither a cache nor the trainer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from delta_common.errors import UserError
from student.inference.tokenizer import tokenizer_digest
from student.model.xlstm import XLSTMStudent

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer_config.json"
AGAIN = "run student-export again"


@dataclass(frozen=True)
class ExportedStudent:
    """A student in float32 with its tokenizer; `stop_token` ends a text."""

    student: XLSTMStudent
    tokenizer: Any
    stop_token: int | None


def load_export(path: Path, device: torch.device) -> ExportedStudent:
    """Load a folder that student-export wrote.

    Raises `UserError` when it is none, a file is missing or damaged, or its tokenizer is not the one of training.
    """
    _require_files(path)
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = _load_model(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: its tokenizer is not readable ({error}); {AGAIN}") from error
    if tokenizer_digest(tokenizer) != model.config.tokenizer_sha256:
        raise UserError(f"{path}: its tokenizer is not the one the student was trained with; {AGAIN}")
    return ExportedStudent(model.student.to(device).eval(), tokenizer, model.config.eos_token_id)


def _require_files(path: Path) -> None:
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the --out folder of student-export")
    if not (path / CONFIG_FILE).is_file():
        what = "a training run" if (path / "settings.json").is_file() else "no export"
        raise UserError(f"{path}: {what}; give the folder that student-export RUN --out FOLDER writes")
    _require_our_type(path / CONFIG_FILE)
    if not (path / WEIGHTS_FILE).is_file():
        raise UserError(f"{path / WEIGHTS_FILE}: missing; {AGAIN}")
    if not (path / TOKENIZER_FILE).is_file():
        raise UserError(f"{path / TOKENIZER_FILE}: missing; {AGAIN}, of a run whose cache has a tokenizer")


def _require_our_type(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a model's configuration; {AGAIN}") from error
    from student.inference.hf_config import DistilXLSTMConfig

    if found != DistilXLSTMConfig.model_type:
        raise UserError(f"{path}: a model of type {found!r}; give a folder of student-export")


def _load_model(path: Path) -> Any:
    from student.inference.hf import DistilXLSTMForCausalLM

    try:
        model, found = DistilXLSTMForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path}: its weights or configuration are damaged ({error}); {AGAIN}") from error
    wrong = sorted({*found["missing_keys"], *found["unexpected_keys"], *map(str, found["mismatched_keys"])})
    if wrong:
        raise UserError(f"{path / WEIGHTS_FILE}: {wrong[0]} is missing or not the student's; {AGAIN}")
    return model
