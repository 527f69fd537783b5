"""Target layouts for tests, and the targets of given logits."""

from typing import Any

import torch
from torch import Tensor

from teacher_cache.format.manifest import TargetLayout
from teacher_cache.format.nodes import FINEST_STEP
from teacher_cache.settings import TargetSettings
from teacher_cache.targets.keep import KeptTargets, keep_targets


def layout(top_k: int, samples: int = 0, **fields: Any) -> TargetLayout:
    """A sparse layout that stores float32 unless told otherwise."""
    return TargetSettings(top_k=top_k, samples=samples, **{"value_dtype": "float32", **fields}).layout()


def in_fine_steps(kept: TargetLayout) -> TargetLayout:
    """The layout with log-mass in steps too fine to show in thousands of draws of one position.

    Over positions the error of rounding has mean zero; in one position it stays the same in every draw.
    """
    return kept.model_copy(update={"log_mass_step": FINEST_STEP})


def keep(logits: Tensor, kept: TargetLayout, seed: int = 0) -> KeptTargets:
    """Targets of logits (n, V) with seeded offsets; the label is token 0."""
    uniform = torch.rand(len(logits), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return keep_targets(logits.clone(), torch.zeros(len(logits), dtype=torch.long), kept, uniform)


def zipf_logits(rows: int, vocab: int, seed: int = 3) -> Tensor:
    """Logits of the shape a language model's have, (rows, vocab) float32."""
    random = torch.Generator().manual_seed(seed)
    return -1.5 * torch.log(torch.arange(1, vocab + 1) + 2.0) + 1.5 * torch.randn(rows, vocab, generator=random)
