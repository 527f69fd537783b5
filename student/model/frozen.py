"""The teacher's embedding and LM head, which the student uses unchanged; read from the cache."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from delta_common.errors import UserError

FROZEN_NAMES = {"embedding.weight": "embedding", "lm_head.weight": "lm_head", "lm_head.bias": "lm_head_bias"}
"""Names in a cache, and in the student."""


@dataclass(frozen=True)
class FrozenHead:
    """The LM head over real tokens, without the padded rows of the vocabulary."""

    weight: Tensor
    """(V, d)"""
    bias: Tensor | None = None
    """(V,)"""

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., d): computed in the head's dtype, returned in float32 or wider."""
        logits = functional.linear(hidden_states.to(self.weight.dtype), self.weight, self.bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def logits_into(self, out: Tensor, hidden_states: Tensor) -> Tensor:
        """Write logits of states (n, d) to `out` (n, V), in the head's dtype and without a gradient; return `out`."""
        with torch.no_grad():
            states = hidden_states.to(self.weight.dtype)
            if self.bias is None:
                return torch.mm(states, self.weight.T, out=out)
            return torch.addmm(self.bias, states, self.weight.T, out=out)


@dataclass(frozen=True)
class FrozenWeights:
    """The two matrices around the student; `lm_head` is None where the teacher ties it to the embedding."""

    embedding: Tensor
    """(V_padded, d)"""
    lm_head: Tensor | None
    """(V_padded, d)"""
    lm_head_bias: Tensor | None
    """(V_padded,)"""
    vocab_size: int
    """Real tokens V: ids 0 .. V - 1."""
    embedding_scale: float | None = None
    """What the teacher's first layer reads over its embedding; None for the embedding itself."""

    @property
    def head(self) -> FrozenHead:
        """The LM head over real tokens, views of (V, d) and (V,)."""
        weight = self.embedding if self.lm_head is None else self.lm_head
        bias = None if self.lm_head_bias is None else self.lm_head_bias[: self.vocab_size]
        return FrozenHead(weight[: self.vocab_size], bias)


CPU = torch.device("cpu")


def read_frozen_weights(
    path: Path,
    *,
    padded_vocab_size: int,
    vocab_size: int,
    hidden_size: int,
    embedding_scale: float | None = None,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
) -> FrozenWeights:
    """Read the safetensors file of a cache to a device, where it is given the dtype; in the host it is as stored.

    Raises `UserError` when the file is missing, damaged, or of other sizes than the cache's manifest.
    """
    tensors = _read_tensors(path, device, dtype)
    matrix, row = (padded_vocab_size, hidden_size), (padded_vocab_size,)
    expected = {"embedding.weight": matrix, "lm_head.weight": matrix, "lm_head.bias": row}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected.get(name):
            raise UserError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, the cache's manifest says "
                f"{expected.get(name, 'nothing of it')}; rebuild the cache"
            )
    if "embedding.weight" not in tensors:
        raise UserError(f"{path}: embedding.weight is missing; rebuild the cache")
    return FrozenWeights(
        embedding=tensors["embedding.weight"],
        lm_head=tensors.get("lm_head.weight"),
        lm_head_bias=tensors.get("lm_head.bias"),
        vocab_size=vocab_size,
        embedding_scale=embedding_scale,
    )


def _read_tensors(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # In two steps: in one, torch would convert on the host.
            return {name: file.get_tensor(name).to(device).to(dtype) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the teacher's frozen weights are not readable: {error}") from error
