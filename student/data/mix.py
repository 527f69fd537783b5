"""The readers of several caches that training mixes."""

from collections.abc import Sequence

from student.data.interleaving import Interleaving, rows_per_period
from student.data.order import BatchReader, Mixed, ShuffleSizes
from teacher_cache.read.cache import Cache


def readers_of(
    caches: Sequence[Cache],
    shares: Sequence[float],
    *,
    seed: int,
    global_batch: int,
    rank: int = 0,
    world_size: int = 1,
    sizes: Sequence[ShuffleSizes] | None = None,
) -> tuple[BatchReader, ...]:
    """A reader for each cache, whose rows together are the global batches; shares are relative to one another.

    A single cache has its whole order. `sizes` are those of a run that goes on, by cache. Raises `UserError`
    where a cache has fewer rows than a step takes of it, or a share is less than a row of 1,000 steps.
    """
    kept: Sequence[ShuffleSizes | None] = sizes or [None] * len(caches)
    mixes: list[Mixed | None] = [None]
    if len(caches) > 1:
        interleaving = Interleaving(rows_per_period(shares, global_batch, [cache.path for cache in caches]))
        rows = sum(map(len, caches))
        mixes = [Mixed(interleaving, number, rows) for number in range(len(caches))]
    return tuple(
        BatchReader(
            cache,
            seed=seed,
            global_batch=global_batch,
            rank=rank,
            world_size=world_size,
            sizes=own,
            mixed=mixed,
        )
        for cache, mixed, own in zip(caches, mixes, kept, strict=True)
    )
