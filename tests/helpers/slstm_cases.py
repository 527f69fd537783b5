"""Seeded sLSTM sequences, and what one form of the recurrence makes of them: values and gradients by name."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from xlstm.blocks.slstm.cell import sLSTMCell_vanilla, sLSTMCellConfig

from student.model.kernels.slstm import slstm_sequence


@dataclass(frozen=True)
class Sequence:
    """Inputs of a recurrence, and the cotangents its gradients are taken with."""

    batch: int
    length: int
    heads: int
    head_dim: int
    from_state: bool = False
    starts: float | None = None
    """Probability that a document starts at a position; None: no document starts are given."""
    final_counts: bool = True
    """Whether the final state has a gradient."""
    dtype: torch.dtype = torch.float64
    device: str = "cpu"
    seed: int = 0

    def in_type(self, dtype: torch.dtype) -> "Sequence":
        return replace(self, dtype=dtype)

    def cell(self) -> Any:
        """An xlstm cell of this type with every parameter away from its start."""
        random = torch.Generator().manual_seed(self.seed)
        config = sLSTMCellConfig(
            hidden_size=self.heads * self.head_dim, num_heads=self.heads, backend="vanilla", _num_blocks=2
        )
        cell = sLSTMCell_vanilla(config)
        with torch.no_grad():
            shape = cell._recurrent_kernel_.shape
            cell._recurrent_kernel_.copy_(torch.randn(shape, generator=random) * 0.7 * self.head_dim**-0.5)
            cell._bias_.add_(torch.randn(cell._bias_.shape, generator=random))
        return cell.to(self.device, self.dtype if self.dtype == torch.float64 else torch.float32)

    def random(self, *shape: int, seed: int) -> Tensor:
        """Numbers that 16-bit types hold too, so that every type sees the same problem."""
        numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * self.seed + seed))
        return numbers.bfloat16().to(self.device, self.dtype)

    def document_start(self) -> Tensor | None:
        if self.starts is None:
            return None
        random = torch.Generator().manual_seed(self.seed)
        return (torch.rand(self.batch, self.length, generator=random) < self.starts).to(self.device)

    def state(self) -> Tensor | None:
        """A state that some steps led to, computed in float64 so that it is the same in every type."""
        if not self.from_state:
            return None
        exact = self.in_type(torch.float64)
        with torch.no_grad():
            _, state = exact.cell()(exact.random(self.batch, 3, 4 * self.heads * self.head_dim, seed=4))
        return state.bfloat16().to(self.dtype)


def results(sequence: Sequence, kernels: str) -> dict[str, Tensor]:
    """Output, final state, and the gradients of inputs, recurrent kernel, bias and initial state, as float64."""
    cell, width = sequence.cell(), sequence.heads * sequence.head_dim
    inputs = sequence.random(sequence.batch, sequence.length, 4 * width, seed=1)
    leaves = {"d_inputs": inputs, "d_kernel": cell._recurrent_kernel_, "d_bias": cell._bias_}
    state = sequence.state()
    if state is not None:
        leaves["d_state"] = state
    for leaf in leaves.values():
        leaf.requires_grad_()
    output, final = slstm_sequence(cell, inputs, state, sequence.document_start(), kernels)
    loss = (output * sequence.random(*output.shape, seed=2)).sum()
    if sequence.final_counts:
        loss = loss + (final * sequence.random(*final.shape, seed=3)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    values = {"output": output, "final": final} | dict(zip(leaves, gradients, strict=True))
    return {name: value.detach().double() for name, value in values.items()}


def relative_errors(ours: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """Norm of each difference over the norm of what it should be; the bare norm where that is zero."""
    assert ours.keys() == reference.keys()
    return {
        name: float((ours[name] - value).norm() / (value.norm() if value.any() else 1))
        for name, value in reference.items()
    }


def worst_error(sequence: Sequence, kernels: str) -> float:
    """The largest relative error in values and gradients, against xlstm's loop in float64."""
    reference = results(sequence.in_type(torch.float64), "naive")
    return max(relative_errors(results(sequence, kernels), reference).values())
