"""Distil from a cache in any training loop: rows, their order and the loss, for any student with an LM head."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cached_distillation.batch import CachedBatch, collate
    from cached_distillation.causal_lm import causal_lm_loss
    from cached_distillation.dataset import CacheDataset
    from cached_distillation.loader import CacheLoader
    from cached_distillation.loss import distillation_loss
    from cached_distillation.order import EpochSampler
    from cached_distillation.step import step_counts
    from cached_distillation.trainer.mixin import CachedDistillation

_ROOMS = {
    "CacheDataset": "dataset",
    "CacheLoader": "loader",
    "CachedBatch": "batch",
    "CachedDistillation": "trainer.mixin",
    "EpochSampler": "order",
    "causal_lm_loss": "causal_lm",
    "collate": "batch",
    "distillation_loss": "loss",
    "step_counts": "step",
}
__all__ = [
    "CacheDataset",
    "CacheLoader",
    "CachedBatch",
    "CachedDistillation",
    "EpochSampler",
    "causal_lm_loss",
    "collate",
    "distillation_loss",
    "step_counts",
]


def __getattr__(name: str) -> object:
    """Each is imported where it is first asked for: a loop of its own needs no transformers."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
