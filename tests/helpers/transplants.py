"""Small teachers of every family, and students that begin as them, with weights away from their initial state."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from student.model.frozen import FrozenWeights
from student.model.transplant.body import body_tensors
from student.model.transplant.options import MixerShape
from student.model.transplant.student import TransplantStudent, build_transplant

WIDTH, VOCAB, LAYERS = 32, 48, 3
SMALL_TRANSPLANT = MixerShape(window=0, sinks=0, convolution=3, lags=4, feature_factor=2)
SMALL_HYBRID = MixerShape(window=5, sinks=2, convolution=0, lags=0, feature_factor=2)
OF_ONE_SIZE = {"transplant": SMALL_TRANSPLANT, "hybrid": SMALL_HYBRID}
"""Those whose state does not grow."""
SHAPES = {
    **OF_ONE_SIZE,
    "attending transplant": replace(SMALL_TRANSPLANT, attention_at=(0,)),
    "attending hybrid": replace(SMALL_HYBRID, attention_at=(2,)),
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "smollm3")


def small_config(family: str, **fields: Any) -> dict[str, Any]:
    """The configuration of a small teacher as transformers writes it; keyword arguments replace fields."""
    config = {
        "model_type": family,
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **({"no_rope_layers": [1, 0, 1]} if family == "smollm3" else {}),
        **fields,
    }
    written: dict[str, Any] = AutoConfig.for_model(**config).to_dict()
    return written


def small_teacher(family: str = "llama", **fields: Any) -> Any:
    """A seeded causal language model, every parameter of which is away from 0 and 1."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small_config(family, **fields))).eval()
    return _moved(model)


def frozen_of(teacher: Any) -> FrozenWeights:
    embedding = teacher.get_input_embeddings().weight.detach().clone()
    return FrozenWeights(embedding, teacher.get_output_embeddings().weight.detach().clone(), None, VOCAB)


def small_transplant(shape: MixerShape | str = "transplant", family: str = "llama", **more: Any) -> TransplantStudent:
    """A student of a small teacher, in float64; keyword arguments are more of `build_transplant`."""
    teacher, shape = small_teacher(family), SHAPES[shape] if isinstance(shape, str) else shape
    built = {"seed": 1, **more}
    student = build_transplant(small_config(family), frozen_of(teacher), body_tensors(teacher), shape, **built)
    return moved_mixers(student).double()


def moved_mixers(student: TransplantStudent) -> TransplantStudent:
    """New parameters away from their initial values, many of which are zero."""
    new = student.new_names()
    _moved(student, only=new)
    return student


def small_tokens(rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(length))


def starts_at(length: int, *rows: list[int]) -> Tensor:
    """Document starts (B, length) at the positions named for each row."""
    starts = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, positions in enumerate(rows):
        starts[row, positions] = True
    return starts


def _moved(module: Any, only: set[str] | None = None) -> Any:
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if only is None or name in only:
                parameter += 0.2 * torch.randn(parameter.shape, generator=random).to(parameter.dtype)
    return module
