"""The order of rows as a sampler: a function of (seed, epoch), the same global batches for any number of processes."""

from collections.abc import Iterator
from typing import TypedDict

from torch import distributed
from torch.utils.data import Sampler

from cached_distillation.dataset import CacheDataset
from delta_common.errors import UserError
from student.data.order import BatchReader, ShuffleSizes


def this_process(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """(rank, number of processes) as given; else torch.distributed's, and 0 of 1 where it is not joined."""
    joined = distributed.is_available() and distributed.is_initialized()
    return (
        rank if rank is not None else distributed.get_rank() if joined else 0,
        world_size if world_size is not None else distributed.get_world_size() if joined else 1,
    )


class OrderState(TypedDict):
    """Where training stands in the order, and what the order is made of."""

    epoch: int
    step: int
    """Global batches of the epoch that are done."""
    seed: int
    global_batch: int
    window_shards: int
    """Shards' worth of rows that are decoded at one time."""
    pool_shards: int
    """Shards whose rows are permuted together."""
    cache: str
    """The cache's fingerprint."""


def sizes_of(state: OrderState) -> ShuffleSizes:
    """What a state's order of rows follows."""
    return ShuffleSizes.recorded(state["window_shards"], state.get("pool_shards"))


def require_same_order(state: OrderState, ours: OrderState) -> None:
    """Raise `UserError` naming both where a state is of another order than ours."""
    state = _with(state, sizes_of(state))
    for name in ("cache", "seed", "global_batch", "window_shards", "pool_shards"):
        if state[name] != ours[name]:
            raise UserError(
                f"resume: the state's {name} is {state[name]}, this run's is {ours[name]}; continue with the same"
            )


class EpochSampler(Sampler[int]):
    """This process's rows in `student-train`'s order: shards permuted, and the rows of a pool of them.

    The p-th global batch of an epoch is the same rows for any number of processes; process r of W takes the r-th slice
    of it. Rows at the end of an epoch that do not fill a global batch are left out of that epoch. An iteration begins
    behind the `step` global batches of `epoch` that are done.

    Args:
        dataset: what the rows are of.
        global_batch: rows of an optimizer step over all processes and micro-batches.
        seed: decides the order.
        rank: of this process; torch.distributed's where it is joined, else 0.
        world_size: number of processes; likewise, else 1.

    Raises `UserError` when the cache has fewer rows than a global batch, or the batch cannot be split.

    """

    def __init__(
        self,
        dataset: CacheDataset,
        *,
        global_batch: int,
        seed: int = 42,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.rank, self.world_size = this_process(rank, world_size)
        self.seed, self.global_batch = seed, global_batch
        self.epoch, self.step = 0, 0
        cache = dataset.cache
        if global_batch < 1 or global_batch % self.world_size:
            raise UserError(f"global_batch {global_batch}: give a multiple of the {self.world_size} processes")
        if len(cache) < global_batch:
            raise UserError(f"{cache.path}: {len(cache)} rows, fewer than global_batch {global_batch}; lower it")
        self._cache = cache
        self._reader = self._reader_of(None)

    def _reader_of(self, sizes: ShuffleSizes | None) -> BatchReader:
        return BatchReader(
            self._cache,
            seed=self.seed,
            global_batch=self.global_batch,
            rank=self.rank,
            world_size=self.world_size,
            sizes=sizes,
        )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        return self._reader.batches_per_epoch

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * self.steps_per_epoch
        for step in range(first + self.step, first + self.steps_per_epoch):
            yield from self._reader.rows(step).tolist()

    def __len__(self) -> int:
        """This process's rows of a whole epoch."""
        return self.steps_per_epoch * (self.global_batch // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Begin with an epoch, unless it is the present one."""
        if epoch != self.epoch:
            self.epoch, self.step = epoch, 0

    def done(self, step: int) -> None:
        """Note how many global batches of the epoch have been trained on; behind the last begins the next epoch."""
        ended, self.step = divmod(step, self.steps_per_epoch)
        self.epoch += ended

    def state_dict(self) -> OrderState:
        """Where training stands."""
        return OrderState(
            epoch=self.epoch,
            step=self.step,
            seed=self.seed,
            global_batch=self.global_batch,
            window_shards=self._reader.sizes.window,
            pool_shards=self._reader.sizes.pool,
            cache=self._cache.fingerprint,
        )

    def load_state_dict(self, state: OrderState) -> None:
        """Go on where a state stands, in pools and windows of its sizes.

        Raises `UserError` for a state of another order, naming the difference.
        """
        sizes = sizes_of(state)
        require_same_order(state, _with(self.state_dict(), sizes))
        self._reader = self._reader_of(sizes)
        self.epoch, self.step = state["epoch"], state["step"]


def _with(state: OrderState, sizes: ShuffleSizes) -> OrderState:
    return {**state, "window_shards": sizes.window, "pool_shards": sizes.pool}
