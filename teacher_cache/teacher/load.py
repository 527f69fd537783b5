"""Loads a teacher from a Hub id, a folder, a GGUF file or an installed package, and refuses what would be random."""

import contextlib
import functools
import importlib.util
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import GgufConfig

from delta_common.errors import UserError
from delta_common.files import expand_home
from delta_common.weights import FileFacts
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.model import Teacher
from teacher_cache.teacher.parallel.group import ALONE, TeacherGroup, group_size, joined_group
from teacher_cache.teacher.parallel.placement import placement
from teacher_cache.teacher.parallel.whole import keep_ends_whole
from teacher_cache.teacher.parts import quantization
from teacher_cache.teacher.probes import require_decoder
from teacher_cache.teacher.tokenizer import load_tokenizer

PACKAGE_PREFIX = "package:"
SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
LFS_POINTER = b"version https://git-lfs"
"""What a file begins with that only stands for one in Git LFS."""
WEIGHT_FILES = {".safetensors", ".bin", ".json"}
"""Endings of the files of a checkpoint that say what its weights are."""
NO_OWN_CODE = {"trust_remote_code": False}
"""Code that comes with a checkpoint is not run; without this transformers asks on stdin whether to run it."""
PLAIN_OUTPUT = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""Overrides what the configuration asks a forward pass to return."""


def group_of(settings: TeacherSettings) -> AbstractContextManager[TeacherGroup]:
    """This process' group of those that hold the teacher, while it is joined; alone where one process holds it."""
    device = _device(settings.device)
    if device.type == "cpu" and torch.cuda.is_available() and group_size(settings.parallel) > 1:
        raise UserError(
            "teacher.device cpu: transformers cuts a teacher over this machine's GPUs; set teacher.device to auto, or "
            "hide them (CUDA_VISIBLE_DEVICES=)"
        )
    return joined_group(settings.parallel, on_gpus=device.type == "cuda")


def load_teacher(settings: TeacherSettings, group: TeacherGroup = ALONE) -> Teacher:
    """Load model and tokenizer from a Hub id, a folder, a GGUF file or an installed package's GGUF file.

    In a group of processes each holds its part of the model, and the leader has the others load theirs. Raises
    `UserError` naming `teacher.model` and the remedy if they cannot be found, read, held or used as a teacher.
    """
    group.tell("load", settings)
    with group.agreeing():
        tokenizer, model, checkpoint = _read(settings, group)
    with group.agreeing():
        return _teacher(model, tokenizer, settings, group, checkpoint)


def serve(group: TeacherGroup, teacher: Teacher | None = None) -> None:
    """Do in this process what the leader of its group asks for, until it has ended: load a teacher, and run it."""
    while (call := group.heard()) is not None:
        name, arguments, named = call
        if name == "load":
            teacher = load_teacher(arguments[0], group)
        else:
            getattr(teacher, name)(*arguments, **named)


def _read(
    settings: TeacherSettings, group: TeacherGroup
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, list[FileFacts]]:
    """The tokenizer, this process' part of the model where its weights are to be, and the files they are in."""
    where, arguments = _source(settings)
    device, is_gguf = _device(settings.device), "gguf_file" in arguments
    if device.type == "cuda":
        torch.cuda.set_device(device)  # for what names no device itself
    transformers.utils.logging.disable_progress_bar()
    try:
        with _no_chatter(), _gguf_read_once() if is_gguf else contextlib.nullcontext():
            config = None if is_gguf else AutoConfig.from_pretrained(where, **NO_OWN_CODE, **arguments)
            require_decoder(config, settings.model)
            checkpoint = _checkpoint(where, config)
            placed = placement(settings, device, group, config)
            tokenizer = load_tokenizer(where, settings.model, **NO_OWN_CODE, **arguments)
            model, report = AutoModelForCausalLM.from_pretrained(
                where,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=settings.attention,
                output_loading_info=True,
                **NO_OWN_CODE,
                **_unpacked(arguments),
                **arguments,
                **placed,
            )
    except UserError:
        raise
    # A damaged file or a refused option may raise anything, and is the user's to mend.
    except Exception as error:
        raise UserError(f"teacher.model {settings.model}: cannot be loaded: {_reason(error, where)}") from error
    require_whole(report, settings.model)
    if config is not None and getattr(config, "quantization_config", None) is not None and quantization(model) is None:
        _as_asked(model, getattr(torch, settings.dtype))
    for name, value in PLAIN_OUTPUT.items():
        setattr(model.config, name, value)
    if not placed:  # of a GGUF file, whose weights are unpacked on the host
        model.to(device)
    return tokenizer, model.eval().requires_grad_(False), checkpoint


def read_configuration(settings: TeacherSettings) -> PreTrainedConfig:
    """The model's configuration alone. Raises `UserError` if it cannot be found or read, or is of no causal model."""
    where, arguments = _source(settings)
    try:
        with _no_chatter():
            return AutoConfig.from_pretrained(where, **NO_OWN_CODE, **arguments)
    # As when loading, anything may be raised.
    except Exception as error:
        raise UserError(f"teacher.model {settings.model}: cannot be read: {_reason(error, where)}") from error


def _as_asked(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the asked dtype to a model whose weights transformers unpacked, to those of their scales.

    Parameters that a family wants in float32 stay so.
    """
    wide = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())}
    if dtype == torch.float16:
        wide |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not any(part in name for part in wide):
            parameter.data = parameter.data.to(dtype)


def _teacher(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: TeacherSettings,
    group: TeacherGroup,
    checkpoint: list[FileFacts],
) -> Teacher:
    """The teacher, once it has been tried."""
    try:
        if not group.is_alone:
            keep_ends_whole(model)
        return Teacher(model, tokenizer, settings, group, checkpoint)
    except UserError:
        raise
    # Which models a plan of transformers serves, and which sizes divide, only trying tells for all.
    except Exception as error:
        if group.is_alone:
            raise UserError(
                f"teacher.model {settings.model}: transformers cannot run it over a few tokens "
                f"({_reason(error, settings.model)}); check config.json, or take another model"
            ) from error
        raise UserError(
            f"teacher.parallel {settings.parallel}: transformers cannot run this teacher cut so "
            f"({_first_line(error)}); set it to another number, or run without torchrun"
        ) from error


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """transformers opens a GGUF file, and lists its tensors' names, anew for configuration, tokenizer and weights.

    Each time takes seconds, for every token of the vocabulary is an object.
    """
    import gguf

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = map(functools.cache, before)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = before


def _unpacked(arguments: Mapping[str, str]) -> dict[str, GgufConfig]:
    """Arguments that unpack GGUF weights while loading: packed ones give other numbers where a kernel is installed."""
    return {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in arguments else {}


def _reason(error: Exception, where: str) -> str:
    """What is wrong, in one line, with the remedy if it is known."""
    said, first = str(error).strip(), _first_line(error)
    pointer = _pointer_file(Path(where))
    if pointer is not None:
        return f"{pointer} is a Git LFS pointer, not the weights; run `git lfs pull` there"
    if "attention implementation" in said or "scaled_dot_product_attention" in said:
        return f"{first}; set teacher.attention to eager"
    if "trust_remote_code" in said:
        return "it needs code of its own, which is not run; give a model that transformers knows"
    if isinstance(error, ModuleNotFoundError) and error.name is not None:
        return f"it needs the package {error.name}, which is not installed; pip install {error.name}"
    if isinstance(error, torch.OutOfMemoryError):
        return "its GPU has too little memory free; set teacher.parallel to spread it over several"
    if isinstance(error, SafetensorError):
        return f"its weights are damaged or cut short ({first}); download them again"
    return first


def _first_line(error: Exception) -> str:
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


def _pointer_file(folder: Path) -> Path | None:
    """A file that should hold weights but is only a Git LFS pointer; None if there is none."""
    if not folder.is_dir():
        return None
    return next((file for file in sorted(folder.glob("*.safetensors")) if _is_pointer(file)), None)


def _is_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def require_whole(report: Mapping[str, Iterable[object]], name: str) -> None:
    """Raise `UserError` unless the checkpoint holds all of the model's parameters and no others.

    transformers fills in random values for those it does not find. `report` is its loading report.
    """
    faults = {
        "missing": sorted(map(str, report["missing_keys"])),
        "of another shape": sorted(map(str, report["mismatched_keys"])),
        "not the model's": sorted(map(str, report["unexpected_keys"])),
        "unreadable": sorted(map(str, report["error_msgs"])),
    }
    found = [f"{len(keys)} {fault} ({_some(keys)})" for fault, keys in faults.items() if keys]
    if found:
        raise UserError(
            f"teacher.model {name}: the checkpoint does not fit the model, which would be partly random: tensors "
            f"{'; '.join(found)}; check config.json (num_hidden_layers) and that all files of the checkpoint are there"
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")


def _source(settings: TeacherSettings) -> tuple[str, dict[str, str]]:
    """Where transformers finds the teacher, and the arguments that name the file or the revision."""
    name = settings.model
    path = _packaged_gguf(name.removeprefix(PACKAGE_PREFIX)) if name.startswith(PACKAGE_PREFIX) else expand_home(name)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"teacher.model {name}: no such GGUF file")
        if SPLIT_GGUF.search(path.name):
            raise UserError(
                f"teacher.model {name}: one part of a split GGUF; merge them with gguf-split --merge, give the whole"
            )
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        return str(path), {}
    if path.is_absolute() or name.startswith((".", "~")):
        raise UserError(f"teacher.model {name}: no such folder; give a Hub id, a folder, a .gguf file or package:NAME")
    return name, {"revision": settings.revision} if settings.revision else {}


def _checkpoint(where: str, config: PreTrainedConfig | None) -> list[FileFacts]:
    """The files that say what the weights are; empty where they are not there yet, or in a GGUF file."""
    folder = Path(where)
    if config is None:
        return []
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        found = try_to_load_from_cache(where, "config.json", revision=commit) if commit else None
        if not isinstance(found, str):
            return []
        folder = Path(found).parent
    return [FileFacts.of(file) for file in sorted(folder.iterdir()) if file.suffix in WEIGHT_FILES]


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
    """The device to compute on; of several GPUs the one that LOCAL_RANK, set by a launcher, gives this process."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("teacher.device cuda: this torch sees no GPU; use auto or cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextlib.contextmanager
def _no_chatter() -> Iterator[None]:
    """Hides progress bars and warnings of speed, which GGUF loading writes to stderr; errors are still raised."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
