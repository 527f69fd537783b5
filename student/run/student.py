"""A student around the frozen matrices of a cache."""

import torch

from student.model.frozen import FrozenWeights, read_frozen_weights
from student.model.shape import TeacherDims, resolve_shape
from student.model.xlstm import XLSTMStudent, build_student
from student.settings import TrainSettings
from teacher_cache.read.cache import Cache


def initial_student(settings: TrainSettings, cache: Cache, device: torch.device) -> XLSTMStudent:
    """A student with initial weights around the frozen matrices of a cache, in the run's precision.

    Raises `UserError` for a shape that does not fit the cache's teacher.
    """
    manifest = cache.manifest
    dims = TeacherDims(manifest.hidden_size, manifest.num_layers, manifest.num_heads)
    shape = resolve_shape(settings.model, dims)
    student = build_student(
        shape,
        frozen_weights_of(cache),
        context_length=manifest.seq_len,
        seed=settings.training.seed,
        kernels=settings.model.kernels,
    )
    # DeepSpeed would cast the parameters but not the frozen matrices, which are buffers.
    return student.to(device=device, dtype=DTYPES[settings.training.precision])


def frozen_weights_of(cache: Cache) -> FrozenWeights:
    """The teacher's embedding and LM head from a cache, in float32 on the CPU; raises as `read_frozen_weights` does."""
    manifest = cache.manifest
    return read_frozen_weights(
        cache.frozen_weights,
        padded_vocab_size=manifest.padded_vocab_size,
        vocab_size=manifest.vocab_size,
        hidden_size=manifest.hidden_size,
        embedding_scale=manifest.teacher.embedding_scale,
    )


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
