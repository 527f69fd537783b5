"""The teacher's embedding and LM head, which the student uses unchanged; read from the cache."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform

FROZEN_NAMES = {"embedding.weight": "embedding", "lm_head.weight": "lm_head", "lm_head.bias": "lm_head_bias"}
"""Names in a cache, and in the student."""


HEAD_ROWS = 64
"""A head's rows are a multiple of this where its weight has them, and of `FEWEST_HEAD_ROWS` always."""
FEWEST_HEAD_ROWS = 8
"""Elements of 16 bits in 16 bytes: a matrix whose rows are no multiple of them has no fast product on a GPU. The
gradient of 1,760 positions over 151,665 logits takes an H100 seven times as long as over 151,664."""


@dataclass(frozen=True)
class FrozenHead:
    """The LM head: rows for the V real tokens, and behind them padding, which takes part in products alone.

    Logits are the product with what the transform makes of it.
    """

    weight: Tensor
    """(R, d), R ≥ V"""
    bias: Tensor | None = None
    """(R,)"""
    real: int | None = None
    """V, where it is less than R."""
    transform: LogitTransform | None = None
    """What the model does behind its head, such as a soft cap; None for nothing."""

    @property
    def vocab_size(self) -> int:
        """V, the number of real tokens."""
        return len(self.weight) if self.real is None else self.real

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., d): the product in the head's dtype, returned in float32 or wider."""
        product = self._product(hidden_states.to(self.weight.dtype))
        return self._transformed(product.to(torch.promote_types(product.dtype, torch.float32)))

    def raw_logits(self, hidden_states: Tensor) -> Tensor:
        """Logits (..., V) of states (..., d), both in the head's dtype."""
        return self._transformed(self._product(hidden_states))

    def workspace(self, positions: int) -> Tensor:
        """Memory (positions, R) for `logits_into`."""
        return self.weight.new_empty(positions, len(self.weight))

    def slope_workspace(self, positions: int) -> Tensor | None:
        """Memory (positions, V) for the slope of `logits_into`; None where that is the same for all logits."""
        capped = self.transform is not None and self.transform.cap is not None
        return self.weight.new_empty(positions, self.vocab_size) if capped else None

    def logits_into(self, workspace: Tensor, hidden_states: Tensor, slope: Tensor | None = None) -> Tensor:
        """Logits (n, V) of states (n, d), a view of the workspace (n, R), in the head's dtype and without a gradient.

        What the workspace holds for padding is 0. With `slope` (n, V) that becomes what `pull_back` needs.
        """
        with torch.no_grad():
            states = hidden_states.to(self.weight.dtype)
            if self.bias is None:
                torch.mm(states, self.weight.T, out=workspace)
            else:
                torch.addmm(self.bias, states, self.weight.T, out=workspace)
            workspace[:, self.vocab_size :] = 0
            logits = workspace[:, : self.vocab_size]
            if self.transform is not None:
                self.transform.write(logits, slope)
        return logits

    def pull_back(self, gradient: Tensor, slope: Tensor | None) -> None:
        """Replace a gradient (n, V) in logits by that in the head's product; `slope` is that of `logits_into`."""
        if self.transform is not None:
            self.transform.write_gradient(gradient, slope)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "FrozenHead":
        """The head elsewhere, or in another dtype."""
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return FrozenHead(self.weight.to(device, dtype), bias, self.real, self.transform)

    def _product(self, hidden_states: Tensor) -> Tensor:
        return functional.linear(hidden_states, self.weight, self.bias)[..., : self.vocab_size]

    def _transformed(self, logits: Tensor) -> Tensor:
        return logits if self.transform is None else self.transform.of(logits)


def head_over(
    weight: Tensor, bias: Tensor | None, vocab_size: int, transform: LogitTransform | None = None
) -> FrozenHead:
    """The head whose real tokens are the first of a weight (V_padded, d) and a bias (V_padded,).

    Views of them where they have the rows. Where they do not, a copy with zeros behind them: differentiable, and kept
    as long as a weight that is not trained.
    """
    rows = _head_rows(vocab_size, len(weight))
    lacking = max(0, rows - len(weight))
    if lacking:
        weight, bias = _extended(weight, lacking), None if bias is None else functional.pad(bias, (0, lacking))
    return FrozenHead(weight[:rows], None if bias is None else bias[:rows], vocab_size, transform)


_extensions = WeakIdKeyDictionary()
"""By weight: how often it had been written to, and its copy with more rows."""


def _extended(weight: Tensor, lacking: int) -> Tensor:
    if weight.requires_grad or weight.is_inference():
        return functional.pad(weight, (0, 0, 0, lacking))
    version, copy = _extensions.get(weight, (None, None))  # type: ignore[no-untyped-call]
    if version != weight._version or len(copy) != len(weight) + lacking:
        copy = functional.pad(weight, (0, 0, 0, lacking))
        _extensions[weight] = weight._version, copy
    found: Tensor = copy
    return found


def _head_rows(vocab_size: int, available: int) -> int:
    wanted = math.ceil(vocab_size / HEAD_ROWS) * HEAD_ROWS
    return available if available < wanted and available % FEWEST_HEAD_ROWS == 0 else wanted


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
    logit_transform: LogitTransform | None = None
    """What the student does behind the LM head, as its teacher does; None for nothing."""

    @property
    def head(self) -> FrozenHead:
        """The LM head; a copy only where the teacher's has too few rows, see `head_over`."""
        weight = self.embedding if self.lm_head is None else self.lm_head
        return head_over(weight, self.lm_head_bias, self.vocab_size, self.logit_transform)


CPU = torch.device("cpu")


def read_frozen_weights(
    path: Path,
    *,
    padded_vocab_size: int,
    vocab_size: int,
    hidden_size: int,
    embedding_scale: float | None = None,
    logit_transform: LogitTransform | None = None,
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
        logit_transform=logit_transform,
    )


def _read_tensors(path: Path, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            # In two steps: in one, torch would convert on the host.
            return {name: file.get_tensor(name).to(device).to(dtype) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: the teacher's frozen weights are not readable: {error}") from error
