"""An export loaded for use: its model, or the student and its tokenizer. Needs neither a cache nor the trainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from delta_common.errors import UserError
from delta_common.files import parse_json
from delta_common.tokenizer import is_digest_of
from student.inference.plain import DAMAGED, load_plain
from student.inference.tokenizer import load_tokenizer
from student.model.student import Student

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from student.inference.hf import StudentForCausalLM
    from student.inference.hf_config import StudentConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PROVENANCE_FILE = "provenance.json"
"""Beside a model of transformers that student-export wrote, as `student.run.files` names it too."""
STUDENT_PREFIX = "student."
"""What the names of an export's tensors begin with."""
TOKENIZER_FILE = "tokenizer_config.json"
AGAIN = "run student-export again"


@dataclass(frozen=True)
class Writer:
    """A student with its tokenizer; `stop_token` ends a text."""

    student: Student
    tokenizer: "PreTrainedTokenizerBase"
    stop_token: int | None


def load_export(path: Path, device: torch.device) -> Writer:
    """Load a folder that student-export wrote, in float32, with its tokenizer.

    Raises `UserError` when it is none, a file is missing or damaged, or its tokenizer is not the one of training.
    """
    if is_export(path) and not is_ours(path):
        return _load_plain(path, device)
    read_config(path)
    _require_file(path / WEIGHTS_FILE)
    _require_file(path / TOKENIZER_FILE, ", of a run whose cache has a tokenizer")
    from transformers import AutoTokenizer

    model = load_model(path, torch.float32)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, config=model.config)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: its tokenizer is not readable ({error}); {AGAIN}") from error
    if not is_digest_of(tokenizer, model.config.tokenizer_sha256):
        raise UserError(f"{path}: its tokenizer is not the one the student was trained with; {AGAIN}")
    return Writer(model.student.to(device).eval(), tokenizer, model.config.eos_token_id)


def _load_plain(path: Path, device: torch.device) -> Writer:
    digest = _digest_of_training(path)
    try:
        tokenizer = load_tokenizer(path, digest)
    except DAMAGED as error:
        raise UserError(f"{path}: its tokenizer is not readable ({error}); put the model's own beside it") from error
    if digest is not None and not is_digest_of(tokenizer, digest):
        raise UserError(f"{path}: its tokenizer is not the one the student was trained with; {AGAIN}")
    student = load_plain(path, len(tokenizer)).to(device).eval()
    return Writer(student, tokenizer, tokenizer.eos_token_id)


def _digest_of_training(path: Path) -> str | None:
    """Of the tokenizer that an exported model of transformers was trained with; None for any other model."""
    file = path / PROVENANCE_FILE
    try:
        found = parse_json(file.read_bytes()) if file.is_file() else {}
        return str(found["tokenizer_sha256"]) if found else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not what student-export writes there; {AGAIN}") from error


def load_model(path: Path, dtype: torch.dtype | Literal["auto"]) -> "StudentForCausalLM":
    """An export as transformers has it, on the CPU, in `dtype` or ("auto") in the one that its configuration names.

    Raises `UserError` when it is no export, or a file is missing or damaged.
    """
    config = read_config(path)
    _require_file(path / WEIGHTS_FILE)
    from transformers.utils import logging

    from student.inference.hf import model_class

    logging.disable_progress_bar()
    model: StudentForCausalLM
    try:
        model, found = model_class(config).from_pretrained(path, dtype=dtype, output_loading_info=True)
    except UserError as error:
        raise UserError(f"{path / CONFIG_FILE}: {error}") from error
    except DAMAGED as error:
        said = " ".join(str(error).split())
        raise UserError(f"{path}: its weights or configuration are damaged ({said}); {AGAIN}") from error
    wrong = sorted({*found["missing_keys"], *found["unexpected_keys"], *map(str, found["mismatched_keys"])})
    if wrong:
        raise UserError(f"{path / WEIGHTS_FILE}: {wrong[0]} is missing or not the student's; {AGAIN}")
    return model


def read_config(path: Path) -> "StudentConfig":
    """The configuration of an export. Raises `UserError` when the folder is none."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give the --out folder of student-export")
    if not is_export(path):
        what = "a training run" if (path / "settings.json").is_file() else "no export"
        raise UserError(f"{path}: {what}; give the folder that student-export RUN --out FOLDER writes")
    file = path / CONFIG_FILE
    try:
        content = parse_json(file.read_bytes())
        found = content.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a model's configuration; {AGAIN}") from error
    from student.inference.hf_config import CONFIGS

    kind = next((kind for kind in CONFIGS if kind.model_type == found), None)
    if kind is None:
        raise UserError(f"{file}: a model of type {found!r}; give a folder of student-export")
    try:
        config: StudentConfig = kind.from_dict(content)
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not an export's configuration ({error}); {AGAIN}") from error
    return config


def is_export(path: Path) -> bool:
    """Whether a folder is a model as student-export writes it, and not a run."""
    return (path / CONFIG_FILE).is_file()


def is_ours(path: Path) -> bool:
    """Whether an export is one of our own students, rather than any model of transformers."""
    from student.inference.hf_config import CONFIGS

    try:
        found = parse_json((path / CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        return True  # what is wrong with it is said where it is read
    known = [kind.model_type for kind in CONFIGS]
    return not isinstance(found, dict) or found.get("model_type") in (*known, None)


def _require_file(path: Path, more: str = "") -> None:
    if not path.is_file():
        raise UserError(f"{path}: missing; {AGAIN}{more}")
