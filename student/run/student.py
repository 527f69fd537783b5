"""A student for a cache, with initial weights, its teacher's or its own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from delta_common.errors import UserError
from delta_common.files import parse_json
from delta_common.logits.transform import LogitTransform
from delta_common.weights import weights_sha256
from student.model.causal_lm.student import CausalLMStudent
from student.model.frozen import CPU, FrozenHead, FrozenWeights, read_frozen_weights
from student.model.shape import StudentSettings, TeacherDims, resolve_shape
from student.model.student import Student
from student.model.transplant.body import body_tensors
from student.model.transplant.families import Config
from student.model.transplant.options import mixer_shape, require_window_in_row
from student.model.transplant.student import TransplantStudent, build_transplant
from student.model.xlstm import build_student
from student.run.causal_lm import causal_lm
from student.run.files import STUDENT_CONFIG_FILE, TEACHER_CONFIG_FILE
from student.settings import TrainSettings
from teacher_cache.read.cache import Cache

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def initial_student(
    settings: TrainSettings, cache: Cache, device: torch.device, config: Config | None = None
) -> Student:
    """A student with initial weights for a cache, around its frozen matrices or by itself, in the run's precision.

    A student with weights from elsewhere is made in host memory and then moved to the device, which never holds more
    than the student. With `config`, as the run's folder keeps it, its weights are random, to be loaded over. Raises
    `UserError` for a shape that does not fit the cache's teacher, for a body that is not its own, and for a model of
    transformers that does not fit the cache.
    """
    dtype, model = DTYPES[settings.training.precision], settings.model
    # DeepSpeed would cast the parameters but not the frozen matrices, which are buffers.
    if model.is_causal_lm:
        frozen = frozen_weights_of(cache) if model.hf is None else None
        return causal_lm(settings, cache, frozen, config).to(device=device, dtype=dtype)
    frozen = replace(frozen_weights_of(cache, device, dtype), logit_transform=transform_of(model, cache))
    if model.begins_as_teacher:
        config, body = teacher_body(model, cache) if config is None else (config, None)
        student = _transplant(settings, cache, frozen, config, body)
    else:
        student = _block_stack(settings, cache, frozen)
    return student.to(device=device, dtype=dtype)


def student_of_run(run: Path, settings: TrainSettings, cache: Cache, device: torch.device) -> Student:
    """The student of a run's folder, whose parameters are still to be loaded: it needs no weights from elsewhere."""
    return initial_student(settings, cache, device, config_of(run, settings.model))


def kept_config(student: Student) -> tuple[str, Config] | None:
    """The file of a run's folder that has the configuration of a student made of layers of transformers, and that."""
    if isinstance(student, TransplantStudent):
        return TEACHER_CONFIG_FILE, student.teacher_config
    return (STUDENT_CONFIG_FILE, student.config) if isinstance(student, CausalLMStudent) else None


def config_of(run: Path, settings: StudentSettings) -> Config | None:
    """The configuration that the folder of a run keeps; None for a block stack, which needs none."""
    if settings.is_causal_lm:
        return _read_config(run / STUDENT_CONFIG_FILE)
    return _read_config(run / TEACHER_CONFIG_FILE) if settings.begins_as_teacher else None


def load_trained(student: Student, file: Path) -> None:
    """Load what a run has trained, every parameter of its student by name; raises `UserError` where it is not that."""
    names = {name for name, _ in student.named_parameters()}
    try:
        stored = load_file(file)
        if stored.keys() != names:
            raise ValueError(f"{min(stored.keys() ^ names)} is missing or none of its own")
        student.load_state_dict(stored, strict=False)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise UserError(f"{file}: not the parameters of this run's student; run student-train again") from error


def teacher_head(
    student: Student, caches: Sequence[Cache], device: torch.device, dtype: torch.dtype
) -> FrozenHead | None:
    """The teacher's LM head where targets of a cache are computed with it and the student has another; else None.

    Another is also the teacher's without what the teacher does behind it.
    """
    exact = next((cache for cache in caches if cache.layout.mode == "exact"), None)
    if exact is None:
        return None
    owns = isinstance(student, CausalLMStudent) and student.trains_head
    same = not owns and student.logit_transform == exact.manifest.teacher.logit_transform
    return None if same else frozen_weights_of(exact, device, dtype).head


def transform_of(settings: StudentSettings, cache: Cache) -> LogitTransform | None:
    """What a student around its teacher's head does behind it."""
    return cache.manifest.teacher.logit_transform if settings.head_transform == "teacher" else None


def _read_config(file: Path) -> Config:
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
        logit_transform=manifest.teacher.logit_transform,
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
