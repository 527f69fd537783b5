"""The teacher's RMS of each channel of its averaged hidden states, which `frobenius.channels: normalised` divides by.

Taken from the first shard, so that it depends on the cache alone: on no rank, batch, precision or restart.
"""

import torch
from torch import Tensor

from delta_common.errors import UserError
from teacher_cache.read.cache import Cache

SMALLEST_SHARE = 0.01
"""A channel's RMS counts as at least this share of the median channel's: one that hardly moves must not decide F."""


def channel_rms(cache: Cache) -> Tensor:
    """RMS (d,) float32 of each channel over the counted positions of the first shard that are kept.

    Raises `UserError` when no position of that shard counts, or when all its states are zero.
    """
    shard, rows_per_chunk = cache.shards[0], cache.manifest.rows.rows_per_chunk
    squares = torch.zeros(cache.manifest.hidden_size, dtype=torch.float64)
    positions = 0
    for first in range(shard.start, shard.stop, rows_per_chunk):
        rows = cache.rows(range(first, min(first + rows_per_chunk, shard.stop)))
        assert rows.hidden_mean is not None
        counted = torch.from_numpy(rows.hidden_mean[rows.loss_mask[:, :: cache.manifest.hidden.stride]])
        squares += counted.double().square().sum(dim=0)
        positions += len(counted)
    rms = (squares / max(positions, 1)).sqrt()
    floor = SMALLEST_SHARE * rms.median()
    if floor == 0:
        raise UserError(
            f"{cache.path}: its first shard has no hidden states to take channel sizes from; "
            "set distillation.frobenius.channels to raw"
        )
    return rms.clamp(min=floor).float()
