"""The RMS of each channel of the teacher's averaged hidden states, which the Frobenius term divides them by.

Where channels are drawn, the cache has it to the next power of two. Else it is taken from the cache's first shard, so
it does not depend on rank, batch, precision or restart.
"""

import torch
from torch import Tensor

from delta_common.errors import UserError
from teacher_cache.read.cache import Cache
from teacher_cache.targets.states import SMALLEST_SHARE, channel_sets


def channel_rms(cache: Cache) -> Tensor:
    """RMS (d,) float32 of each channel over the valid positions of the first shard that have hidden states.

    Raises `UserError` when that shard has no such position, or all its states are zero.
    """
    sampling = cache.manifest.hidden.channels
    if sampling is not None:
        return torch.from_numpy(channel_sets(sampling).sizes)
    shard, rows_per_chunk = cache.shards[0], cache.manifest.rows.rows_per_chunk
    squares = torch.zeros(cache.manifest.hidden_size, dtype=torch.float64)
    positions = 0
    for first in range(shard.start, shard.stop, rows_per_chunk):
        rows = cache.rows(range(first, min(first + rows_per_chunk, shard.stop)))
        assert rows.hidden_mean is not None
        counted = torch.from_numpy(rows.hidden_mean[rows.hidden_counted])
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
