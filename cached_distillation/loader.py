"""A DataLoader that knows where training stands, whatever its workers have read ahead."""

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import DataLoader

from cached_distillation.batch import CachedBatch, CachedRow, collate
from cached_distillation.dataset import CacheDataset
from cached_distillation.order import EpochSampler, OrderState, this_process
from delta_common.errors import UserError


class CacheLoader(DataLoader[CachedRow]):
    """Micro-batches of this process, in the order of an `EpochSampler`.

    An iteration goes to the end of the epoch; the next one goes on from there, or from where the last one was broken
    off. `state_dict` says where training stands, in optimizer steps.

    Args:
        dataset: what to read.
        batch_size: rows of a micro-batch.
        accumulation: micro-batches of an optimizer step in each process.
        seed: decides the order of rows.
        rank: of this process; torch.distributed's where it is joined, else 0.
        world_size: number of processes; likewise, else 1.
        options: the DataLoader's, such as `num_workers` and `pin_memory`.

    Raises `UserError` when the cache has fewer rows than an optimizer step takes.

    """

    def __init__(
        self,
        dataset: CacheDataset,
        *,
        batch_size: int,
        accumulation: int = 1,
        seed: int = 42,
        rank: int | None = None,
        world_size: int | None = None,
        **options: object,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("accumulation", accumulation)):
            if value < 1:
                raise UserError(f"{name} {value}: give at least 1")
        rank, world_size = this_process(rank, world_size)
        rows = batch_size * accumulation * world_size
        self.accumulation = accumulation
        self.order = EpochSampler(dataset, global_batch=rows, seed=seed, rank=rank, world_size=world_size)
        super().__init__(dataset, batch_size=batch_size, sampler=self.order, collate_fn=collate, **options)  # type: ignore[arg-type]

    @property
    def epoch(self) -> int:
        """The epoch that the next batch is of, from 0."""
        return self.order.epoch

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""
        return self.order.steps_per_epoch

    def __iter__(self) -> Iterator[CachedBatch]:  # type: ignore[override]
        """The micro-batches to the end of the epoch."""
        before = self.order.step * self.accumulation
        for given, batch in enumerate(super().__iter__(), start=before + 1):
            if given % self.accumulation == 0:
                self.order.done(given // self.accumulation)
            yield batch

    def steps(self) -> Iterator[tuple[CachedBatch, ...]]:
        """The micro-batches of each optimizer step, to the end of the epoch."""
        batches = iter(self)
        while step := tuple(islice(batches, self.accumulation)):
            yield step

    def state_dict(self) -> OrderState:
        """Where training stands: behind the last optimizer step whose micro-batches have all been given."""
        return self.order.state_dict()

    def load_state_dict(self, state: OrderState) -> None:
        """Go on where a state stands; raises `UserError` for a state of another order, naming the difference."""
        self.order.load_state_dict(state)
