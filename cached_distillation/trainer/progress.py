"""What the loss was made of since it was last logged."""

from collections.abc import Callable

import torch
from torch import Tensor

from cached_distillation.batch import CachedBatch
from cached_distillation.step import counted
from student.loss.distillation import LossSums
from student.loss.schedule import Coefficients


class LossLog:
    """Sums of this process; means are over all processes."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._last: Coefficients | None = None

    def add(self, sums: LossSums, batch: CachedBatch, coefficients: Coefficients) -> None:
        """Add a micro-batch."""
        terms = torch.stack([sums.cross_entropy, sums.kl, sums.frobenius]).detach().double()
        ours = torch.cat([terms, counted(batch)])
        self._sums = ours if self._sums is None else self._sums + ours
        self._last = coefficients

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Per token, and the last coefficients; then sums begin anew. `reduce` adds up over all processes."""
        if self._sums is None or self._last is None:
            return {}
        cross_entropy, kl, frobenius, tokens, sequences = reduce(self._sums).tolist()
        self._sums = None
        last = self._last
        found = {"cross_entropy": cross_entropy / max(tokens, 1), "kl": kl / max(tokens, 1)}
        if last.beta:
            found |= {"frobenius": frobenius / max(sequences, 1), "beta": last.beta}
        return found | {"alpha": last.alpha, "temperature": last.temperature}
