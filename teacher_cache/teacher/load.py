"""Loads a teacher from a Hub id, a folder, a GGUF file or an installed package."""

import contextlib
import importlib.util
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from delta_common.errors import UserError
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.model import Teacher

PACKAGE_PREFIX = "package:"


def load_teacher(settings: TeacherSettings) -> Teacher:
    """Load model and tokenizer from a Hub id, a folder, a GGUF file or a package's GGUF.

    Raises `UserError` naming `teacher.model` and the remedy when it cannot be found or read.
    """
    where, arguments = _source(settings)
    device = _device(settings.device)
    transformers.utils.logging.disable_progress_bar()
    try:
        with _no_chatter():
            tokenizer = AutoTokenizer.from_pretrained(where, **arguments)
            model = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=settings.attention,
                **arguments,
            )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"teacher.model {settings.model}: cannot be loaded: {reason}") from error
    return Teacher(model.eval().requires_grad_(False).to(device), tokenizer, settings)


def _source(settings: TeacherSettings) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the teacher, and the arguments that say which file or revision."""
    name = settings.model
    path = _packaged_gguf(name.removeprefix(PACKAGE_PREFIX)) if name.startswith(PACKAGE_PREFIX) else Path(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"teacher.model {name}: no such GGUF file")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        return str(path), {}
    if path.is_absolute() or name.startswith((".", "~")):
        raise UserError(f"teacher.model {name}: no such folder; give a Hub id, a folder, a .gguf file or package:NAME")
    return name, {"revision": settings.revision} if settings.revision else {}


def _packaged_gguf(name: str) -> Path:
    """The GGUF file inside an installed package, found without importing the package."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise UserError(f"teacher.model package:{name}: no such package is installed; pip install it first")
    files = sorted(Path(spec.origin).parent.rglob("*.gguf"))
    if len(files) != 1:
        found = ", ".join(f.name for f in files) or "none"
        raise UserError(f"teacher.model package:{name}: expected one GGUF file inside it, found {found}")
    return files[0]


def _device(name: str) -> torch.device:
    """On a GPU the one of this process among those a launcher started on the machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("teacher.device cuda: this torch sees no GPU; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextlib.contextmanager
def _no_chatter() -> Iterator[None]:
    """GGUF loading draws bars on stderr and warns of speed; errors still arrive as exceptions."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
