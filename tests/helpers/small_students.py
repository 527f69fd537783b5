"""Small students with weights away from their initial state, as modules and as transformers models."""

from typing import Any, Literal

import torch

from student.inference.hf import DistilXLSTMForCausalLM
from student.inference.hf_config import DistilXLSTMConfig
from student.model.frozen import FrozenWeights
from student.model.shape import StudentSettings, StudentShape, TeacherDims, resolve_shape
from student.model.xlstm import XLSTMStudent, build_student

WIDTH, VOCAB, PADDED = 32, 40, 48


def small_shape() -> StudentShape:
    return resolve_shape(StudentSettings(blocks=3, heads=4, qkv_block_size=8), TeacherDims(WIDTH, 4, 4))


def small_student(*, kernels: Literal["auto", "naive"] = "auto") -> XLSTMStudent:
    """Its embedding is not its head: a tied one mostly repeats the last token."""
    embedding, head = torch.randn(2, PADDED, WIDTH, generator=torch.Generator().manual_seed(5))
    frozen = FrozenWeights(embedding, head, None, VOCAB)
    return _moved(build_student(small_shape(), frozen, context_length=16, seed=1, kernels=kernels))


def small_model(*, vocab_size: int = VOCAB, padded_vocab_size: int = PADDED, **more: Any) -> DistilXLSTMForCausalLM:
    """Keyword arguments are more fields of the configuration."""
    shape = small_shape()
    config = DistilXLSTMConfig(
        vocab_size=vocab_size,
        padded_vocab_size=padded_vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=shape.blocks,
        num_attention_heads=shape.heads,
        slstm_at=list(shape.slstm_at),
        qkv_block_size=shape.qkv_block_size,
        tie_word_embeddings=False,
        **more,
    )
    torch.manual_seed(3)
    model = DistilXLSTMForCausalLM(config).eval()
    _moved(model.student)
    return model


def tokens_of(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random tokens (rows, length)."""
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def _moved(student: XLSTMStudent) -> XLSTMStudent:
    """Away from the initial state, whose recurrent weights are zero."""
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return student
