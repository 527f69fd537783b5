"""Small students with weights away from their initial state, as modules and as transformers models."""

from dataclasses import asdict
from typing import Any, Literal

import torch

from student.inference.hf import DistilTransplantForCausalLM, DistilXLSTMForCausalLM, StudentForCausalLM
from student.inference.hf_config import DistilTransplantConfig, DistilXLSTMConfig
from student.model.frozen import FrozenWeights
from student.model.shape import StudentSettings, StudentShape, TeacherDims, resolve_shape
from student.model.student import Student
from student.model.transplant.student import build_transplant
from student.model.xlstm import build_student
from tests.helpers.transplants import LAYERS, SHAPES, small_config

WIDTH, VOCAB, PADDED = 32, 40, 48
ROUNDING = {"xlstm": 1e-9, "transplant": 2e-5, "hybrid": 2e-5, "attending hybrid": 2e-5}
"""Kinds of students, and how far two ways to the same float64 numbers may be apart: norms of transformers round."""


def small_shape() -> StudentShape:
    return resolve_shape(StudentSettings(blocks=3, heads=4, qkv_block_size=8), TeacherDims(WIDTH, 4, 4))


def small_student(kind: str = "xlstm", *, kernels: Literal["auto", "naive"] = "auto") -> Student:
    """Its embedding is not its head: a tied one mostly repeats the last token."""
    embedding, head = torch.randn(2, PADDED, WIDTH, generator=torch.Generator().manual_seed(5))
    frozen = FrozenWeights(embedding, head, None, VOCAB)
    if kind == "xlstm":
        return _moved(build_student(small_shape(), frozen, context_length=16, seed=1, kernels=kernels))
    return _moved(build_transplant(small_config("llama"), frozen, None, SHAPES[kind], seed=1, kernels=kernels))


def small_model(
    kind: str = "xlstm", *, vocab_size: int = VOCAB, padded_vocab_size: int = PADDED, **more: Any
) -> StudentForCausalLM:
    """Keyword arguments are more fields of the configuration."""
    said = {"vocab_size": vocab_size, "padded_vocab_size": padded_vocab_size, "hidden_size": WIDTH}
    said |= {"tie_word_embeddings": False, **more}
    torch.manual_seed(3)
    model = (_xlstm_model(said) if kind == "xlstm" else _transplant_model(kind, said)).eval()
    _moved(model.student)
    return model


def _xlstm_model(said: dict[str, Any]) -> StudentForCausalLM:
    shape = small_shape()
    config = DistilXLSTMConfig(
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        slstm_at=list(shape.slstm_at),
        qkv_block_size=shape.qkv_block_size,
        **said,
    )
    return DistilXLSTMForCausalLM(config)


def _transplant_model(kind: str, said: dict[str, Any]) -> StudentForCausalLM:
    teacher = small_config("llama")
    shape = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "mixer": asdict(SHAPES[kind])}
    return DistilTransplantForCausalLM(DistilTransplantConfig(**{"teacher_config": teacher, **shape, **said}))


def tokens_of(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens (rows, length)."""
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def _moved(student: Student) -> Student:
    """Away from the initial state, whose recurrent weights are zero."""
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return student
