"""A teacher's attention on its projections: what some layers of a student keep, and what its mixers learn from."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from student.model.transplant.families import rotated
from student.model.transplant.mixing import Mixing

LayerState = dict[str, Any]
"""What one layer carries from position to position: tensors by name, rows on axis 0."""


class Heads(NamedTuple):
    """A layer's input, projected: queries (B, H, T, D), keys and values (B, K, T, D)."""

    q: Tensor
    k: Tensor
    v: Tensor


class Attention(nn.Module):
    """Called as the layer calls its attention, with a `mixing`; gives the layer's output (B, T, d) and None.

    Each position sees all of its document so far. The state holds the keys and values of all positions.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.q_norm, self.k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.rotates = bool(getattr(attention, "use_rope", True))
        self.name = f"layer_{attention.layer_idx}"

    def forward(self, hidden_states: Tensor, *, mixing: Mixing, **_: Any) -> tuple[Tensor, None]:
        if mixing.transfer is None:
            return self.mix(hidden_states, mixing), None
        target = self.softmax_attention(hidden_states, mixing)
        mixing.transfer.append((hidden_states, target))
        return target, None

    def mix(self, hidden_states: Tensor, mixing: Mixing) -> Tensor:
        """The layer's output (B, T, d) from its input (B, T, d); the state, if wanted, goes to `mixing.after`."""
        return self.softmax_attention(hidden_states, mixing)

    def softmax_attention(self, hidden_states: Tensor, mixing: Mixing) -> Tensor:
        """What attention with these projections gives, (B, T, d), every document by itself."""
        q, k, v = self.project(hidden_states)
        assert mixing.angles is not None
        q, k = self._rotated(q, mixing.angles.here), self._rotated(k, mixing.angles.here)
        if mixing.before is not None:
            before = mixing.before[self.name]["seen"]
            k, v = (torch.cat([old.to(new.dtype), new], dim=2) for old, new in zip(before, (k, v), strict=True))
        if mixing.after is not None:
            mixing.after[self.name] = {"seen": (k, v)}
        seen = _seen(mixing, k.shape[2])
        k, v = self._for_each_head(k), self._for_each_head(v)
        y = functional.scaled_dot_product_attention(q, k, v, seen, is_causal=seen is None, scale=self.scaling)
        return self._output(y)

    def project(self, hidden_states: Tensor) -> Heads:
        """Queries, keys and values as the teacher has them before it rotates them."""
        q, k, v = (
            projection(hidden_states).unflatten(-1, (-1, self.head_dim))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        return Heads(*(x.transpose(1, 2) for x in (q, k, v)))

    def _for_each_head(self, x: Tensor) -> Tensor:
        """(B, K, ...) to (B, H, ...)"""
        return x.repeat_interleave(self.q_proj.out_features // self.k_proj.out_features, dim=1)

    def _rotated(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        return rotated(x, angles) if self.rotates else x

    def _output(self, y: Tensor) -> Tensor:
        """(B, H, T, D) through the output projection."""
        output: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return output


def _seen(mixing: Mixing, keys: int) -> Tensor | None:
    """Which of so many keys each position sees, (B, 1, T, keys): those of its document; None for all up to it."""
    length = mixing.place.shape[1]
    if keys == length and mixing.document_start is None:
        return None
    there = torch.arange(keys, device=mixing.place.device)
    here = there[keys - length :]
    first = here - mixing.place
    return ((there <= here[:, None]) & (there >= first[..., None]))[:, None]
