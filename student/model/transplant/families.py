"""The teachers whose decoder layers a student can begin with: one table entry a family."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delta_common.errors import UserError

Config = Mapping[str, Any]
"""A teacher's configuration, as transformers writes it."""

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

FAMILIES = {
    "llama": "Llama",  # SmolLM and SmolLM2 are of this family
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
}
"""`model_type` of transformers to the prefix of its classes.

What a family must have: decoder layers that call `self_attn` with keyword arguments and add its output, attention of
`q_proj`, `k_proj`, `v_proj`, `o_proj`, perhaps `q_norm` and `k_norm` a head, rotary positions over the whole head.
"""


@dataclass(frozen=True)
class Body:
    """What of a teacher a student begins with, without weights where made under `torch.device("meta")`."""

    layers: nn.ModuleList
    norm: nn.Module
    rotary: "Rotary"
    hidden_size: int


class Rotary:
    """Rotary positions of any place; no module, so that no cast of the student rounds its frequencies."""

    def __init__(self, frequencies: Tensor, scaling: float, longest: int) -> None:
        self.frequencies, self.scaling, self.longest = frequencies, scaling, longest

    def angles(self, place: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, 1, N, D) of places (B, N), taken in float32 as the teacher's are."""
        if self.frequencies.device != place.device:
            self.frequencies = self.frequencies.to(place.device)
        angles = place[:, None, :, None].float() * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * self.scaling).to(dtype), (angles.sin() * self.scaling).to(dtype)


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys (B, h, N, D) turned by `Rotary.angles`."""
    first, second = x.chunk(2, dim=-1)
    return x * angles[0] + torch.cat([-second, first], dim=-1) * angles[1]


def build_body(config: Config) -> Body:
    """Decoder layers and last norm of a teacher, from its configuration as transformers writes it.

    Raises `UserError` for a family that is not in the table, and for what does not fit of one that is.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise UserError(
            f"model.teacher: decoder layers of {family!r} cannot be built on; those that can: {', '.join(FAMILIES)}; "
            "another teacher, or model.preset paper, works"
        )
    from transformers import AutoConfig  # takes seconds, and most students need none of it

    settings, prefix = AutoConfig.for_model(**config), FAMILIES[family]
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    layer_class = getattr(module, f"{prefix}DecoderLayer")
    layers = [layer_class(settings, number) for number in range(settings.num_hidden_layers)]
    for layer in layers:
        _require_plain_attention(layer.self_attn, str(family))
    norm = getattr(module, f"{prefix}RMSNorm")(settings.hidden_size, eps=settings.rms_norm_eps)
    rotary = _rotary(getattr(module, f"{prefix}RotaryEmbedding"), settings)
    return Body(nn.ModuleList(layers), norm, rotary, settings.hidden_size)


def _require_plain_attention(attention: nn.Module, family: str) -> None:
    missing = [name for name in PROJECTIONS if not hasattr(attention, name)]
    if missing:
        raise UserError(f"model.teacher: attention of {family} has no {', '.join(missing)}; choose another teacher")


def _rotary(rotary_class: Any, settings: Any) -> Rotary:
    with torch.device("cpu"):
        rotary = rotary_class(settings)
    if rotary.rope_type in ("dynamic", "longrope"):
        raise UserError(
            f"model.teacher: rotary positions of type {rotary.rope_type} change with the length of a text, which a "
            "window of constant size cannot follow; choose another teacher"
        )
    return Rotary(rotary.inv_freq, rotary.attention_scaling, settings.max_position_embeddings)
