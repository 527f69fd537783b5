"""The share of a card's matrix peak that a model uses: MFU, model FLOPs utilization (PaLM, 2022, appendix B).

Operations are those of products with weights. Products of positions with each other, as attention has them, are left
out, and so is what is computed a second time to save memory.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PEAKS = {
    "B200": 2250e12,
    "GH200 480GB": 989e12,
    "H200": 989e12,
    "H200 NVL": 835e12,
    "H100 80GB HBM3": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "A100-SXM4-40GB": 312e12,
    "A100-SXM4-80GB": 312e12,
    "A100-PCIE-40GB": 312e12,
    "A100 80GB PCIe": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Operations per second in bfloat16 and float16, dense and summed in float32, as the makers state them; by what PyTorch
calls the card, without the maker's name. Part of a card, or another card of a like name, is not among them."""
FLOAT16_PEAKS = {
    "V100-SXM2-16GB": 125e12,
    "V100-SXM2-32GB": 125e12,
    "V100-PCIE-16GB": 112e12,
    "V100-PCIE-32GB": 112e12,
    "T4": 65e12,
}
"""Of cards whose matrix units know float16 alone."""
MAKERS = {"NVIDIA", "Tesla", "GeForce"}


def matrix_peak(device: "torch.device", dtype: "torch.dtype") -> float | None:
    """Operations per second in 16 bits; None for a CPU, an unknown card, or a dtype without such a peak."""
    import torch

    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = " ".join(word for word in torch.cuda.get_device_name(device).split() if word not in MAKERS)
    return PEAKS.get(name) or (FLOAT16_PEAKS.get(name) if dtype == torch.float16 else None)


@dataclass(frozen=True)
class Operations:
    """What a pass takes in products with weights."""

    position: float
    """Per position, without the LM head."""
    counted: float
    """Of the LM head, per position that counts."""

    def total(self, positions: float, counted: float) -> float:
        """Of so many positions, of which so many count."""
        return self.position * positions + self.counted * counted


@dataclass(frozen=True)
class MatrixWork:
    """Operations, and what the cards that share them could do."""

    operations: Operations
    peak: float
    """Operations per second of all cards."""

    @classmethod
    def of(
        cls, operations: Operations | None, device: "torch.device", dtype: "torch.dtype", cards: int = 1
    ) -> "MatrixWork | None":
        """On cards like `device`; None where the operations or the peak are not known."""
        peak = matrix_peak(device, dtype)
        return None if operations is None or peak is None else cls(operations, peak * cards)

    def mfu(self, positions: float, counted: float, seconds: float) -> float:
        """The share of the peak that so many positions, of which so many count, come to in this time."""
        return self.operations.total(positions, counted) / (self.peak * seconds)


def product_parameters(model: "nn.Module") -> Iterator[tuple[str, "nn.Parameter"]]:
    """The matrices that every position is multiplied by, with their names: no embeddings, biases and norms."""
    from torch import nn

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in embeddings and len(_whole_shape(parameter)) > 1:
            yield name, parameter


def has_experts(model: "nn.Module") -> bool:
    """Whether a position meets some of the parameters only, so that their number does not tell the operations."""
    return any(_is_of_experts(name, module) for name, module in model.named_modules())


def _is_of_experts(name: str, module: "nn.Module") -> bool:
    words = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
    return "expert" in words or "moe" in words


def whole_size(parameter: "Tensor") -> int:
    """Entries of a parameter, whole also where ZeRO 3 has split it."""
    return math.prod(_whole_shape(parameter))


def _whole_shape(parameter: "Tensor") -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
