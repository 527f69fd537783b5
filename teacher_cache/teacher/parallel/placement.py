"""Where a teacher's weights go while their files are read: each to its device, with no whole copy on the host."""

import os

import torch
from transformers import PreTrainedConfig
from transformers.distributed import DistributedConfig

from delta_common.errors import UserError
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.parallel.fit import (
    ROOM_ON_GPU,
    TeacherSize,
    free_bytes,
    require_cut,
    require_memory,
    teacher_size,
)
from teacher_cache.teacher.parallel.group import TeacherGroup


def placement(
    settings: TeacherSettings, device: torch.device, group: TeacherGroup, config: PreTrainedConfig | None
) -> dict[str, object]:
    """Arguments of `from_pretrained` for this process' part of the teacher.

    `config` is its configuration, None for a GGUF file. Raises `UserError` if the teacher cannot be cut so, or has no
    room, as far as its configuration tells.
    """
    if config is None:
        return _without_a_size(settings, group)
    size = teacher_size(config, getattr(torch, settings.dtype))
    if not group.is_alone:
        require_cut(settings, size, config.model_type)
        placed: dict[str, object] = {"distributed_config": _tensor_parallel(settings.parallel)}
    elif settings.parallel > 1:
        placed = _spread(_free_of_gpus(settings.parallel))
    else:
        placed = {"device_map": {"": device}}
    if getattr(config, "quantization_config", None) is None:
        _require_memory(settings, size, device, group)
    return placed


def _without_a_size(settings: TeacherSettings, group: TeacherGroup) -> dict[str, object]:
    if not group.is_alone:
        raise UserError(
            f"teacher.parallel {settings.parallel}: weights of a GGUF file are not cut; run without torchrun, and one "
            "process spreads the layers over its GPUs"
        )
    return _spread(_free_of_gpus(settings.parallel)) if settings.parallel > 1 else {}


def _tensor_parallel(count: int) -> DistributedConfig:
    if "tp_size" not in DistributedConfig.__dataclass_fields__:
        raise UserError(f"teacher.parallel {count}: this transformers cuts no teacher; pip install -U transformers")
    return DistributedConfig(tp_size=count)


def _spread(free: list[int]) -> dict[str, object]:
    """About as many layers on each GPU, one after another."""
    return {"device_map": "balanced", "max_memory": {gpu: max(0, n - ROOM_ON_GPU) for gpu, n in enumerate(free)}}


def _free_of_gpus(count: int) -> list[int]:
    """Free bytes of the first `count` GPUs; raises `UserError` where there are fewer."""
    there = torch.cuda.device_count()
    if there < count:
        raise UserError(
            f"teacher.parallel {count}: one process spreads a teacher over {count} GPUs, and this machine has {there}; "
            f"set it to {max(1, there)}, or start the command by torchrun --nproc-per-node {count}"
        )
    return [free_bytes(torch.device("cuda", gpu), 1) for gpu in range(count)]


def _require_memory(settings: TeacherSettings, size: TeacherSize, device: torch.device, group: TeacherGroup) -> None:
    if group.is_alone and settings.parallel > 1:
        free, on_gpu = min(_free_of_gpus(settings.parallel)), True
    else:
        free = free_bytes(device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        on_gpu = device.type == "cuda"
    require_memory(settings, size, free, tensor=not group.is_alone, on_gpu=on_gpu)
