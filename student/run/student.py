"""A student around the frozen matrices of a cache, with initial weights or its teacher's."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from delta_common.errors import UserError
from delta_common.files import parse_json
from delta_common.weights import weights_sha256
from student.model.frozen import CPU, FrozenWeights, read_frozen_weights
from student.model.shape import StudentSettings, TeacherDims, resolve_shape
from student.model.student import Student
from student.model.transplant.body import body_tensors
from student.model.transplant.families import Config
from student.model.transplant.options import mixer_shape, require_window_in_row
from student.model.transplant.student import build_transplant
from student.model.xlstm import build_student
from student.run.files import TEACHER_CONFIG_FILE
from student.settings import TrainSettings
from teacher_cache.read.cache import Cache

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def initial_student(
    settings: TrainSettings, cache: Cache, device: torch.device, teacher_config: Config | None = None
) -> Student:
    """A student with initial weights around the frozen matrices of a cache, in the run's precision.

    A student that begins as its teacher is made in host memory, the teacher's weights copied into it, and then moved to
    the device, which never holds both. With `teacher_config` its weights are random, to be loaded over. Raises
    `UserError` for a shape that does not fit the cache's teacher, and for a body that is not its own.
    """
    dtype = DTYPES[settings.training.precision]
    # DeepSpeed would cast the parameters but not the frozen matrices, which are buffers.
    frozen = frozen_weights_of(cache, device, dtype)
    if settings.model.begins_as_teacher:
        config, body = teacher_body(settings.model, cache) if teacher_config is None else (teacher_config, None)
        student = _transplant(settings, cache, frozen, config, body)
    else:
        student = _block_stack(settings, cache, frozen)
    return student.to(device=device, dtype=dtype)


def student_of_run(run: Path, settings: TrainSettings, cache: Cache, device: torch.device) -> Student:
    """The student of a run's folder, whose parameters are still to be loaded: it needs no teacher's body."""
    if not settings.model.begins_as_teacher:
        return initial_student(settings, cache, device)
    return initial_student(settings, cache, device, teacher_config_of(run))


def teacher_config_of(run: Path) -> Config:
    """The teacher's configuration, from the folder of a run whose student begins as its teacher."""
    file = run / TEACHER_CONFIG_FILE
    try:
        config = parse_json(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not what student-train writes there; run its command again") from error
    return config


def _block_stack(settings: TrainSettings, cache: Cache, frozen: FrozenWeights) -> Student:
    manifest = cache.manifest
    dims = TeacherDims(manifest.hidden_size, manifest.num_layers, manifest.num_heads)
    return build_student(
        resolve_shape(settings.model, dims),
        frozen,
        context_length=manifest.seq_len,
        seed=settings.training.seed,
        kernels=settings.model.kernels,
    )


def frozen_weights_of(cache: Cache, device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> FrozenWeights:
    """The teacher's embedding and LM head from a cache; raises as `read_frozen_weights` does."""
    manifest = cache.manifest
    return read_frozen_weights(
        cache.frozen_weights,
        padded_vocab_size=manifest.padded_vocab_size,
        vocab_size=manifest.vocab_size,
        hidden_size=manifest.hidden_size,
        embedding_scale=manifest.teacher.embedding_scale,
        device=device,
        dtype=dtype,
    )


def _transplant(
    settings: TrainSettings, cache: Cache, frozen: FrozenWeights, config: Config, body: dict[str, Tensor] | None
) -> Student:
    shape = mixer_shape(settings.model)
    require_window_in_row(shape, cache.manifest.seq_len)
    return build_transplant(
        config,
        frozen,
        body,
        shape,
        seed=settings.training.seed,
        kernels=settings.model.kernels,
        recompute=settings.training.recompute,
    )


def teacher_body(settings: StudentSettings, cache: Cache) -> tuple[Config, dict[str, Tensor]]:
    """The teacher's configuration and its body, from the cache or from `model.teacher`.

    Raises `UserError` where neither has it, and where `model.teacher` is not the cache's teacher by its digest.
    """
    if settings.teacher is not None:
        return _named_teacher(settings.teacher, cache)
    config, file = cache.teacher_config, cache.body_weights
    if config is None or file is None:
        raise UserError(
            f"model.preset {settings.preset}: {cache.path} does not carry its teacher's body; name the teacher with "
            "--model.teacher, or build the cache with teacher.carry: body"
        )
    try:
        return config, load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: the teacher's body is not readable: {error}") from error


def _named_teacher(name: str, cache: Cache) -> tuple[Config, dict[str, Tensor]]:
    from transformers import AutoModelForCausalLM

    wanted = cache.manifest.teacher
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, wanted.dtype))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"model.teacher {name}: cannot be loaded: {reason}") from error
    if weights_sha256(model.state_dict()) != wanted.weights_sha256:
        raise UserError(
            f"model.teacher {name}: its weights are not those of {wanted.name}, the teacher of {cache.path}; "
            "name that teacher, in the revision the cache was built with"
        )
    return model.config.get_text_config(decoder=True).to_dict(), body_tensors(model)
