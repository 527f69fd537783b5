"""The processes that hold one teacher together: the first leads, and the others do what it is about to do.

Each group is a world of its own for `torch.distributed`, so that groups started by one launcher need nothing of each
other. A call reaches the others through the CPU: no process waits for another's GPU, except where the teacher itself
does.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from delta_common.errors import UserError

PATIENCE = timedelta(days=365)
"""How long the others wait for the next call: the leader may read a corpus for days."""
Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""Name of a method, arguments, named arguments."""
STOP = None
FAILED = 2
"""Exit code where the leader says what is wrong."""


class LeftOut(SystemExit):
    """Ends a process that does not lead, without a word: its group has ended, or the leader says why it will."""


@dataclass(frozen=True)
class TeacherGroup:
    """This process among those that hold one teacher."""

    rank: int = 0
    size: int = 1
    control: distributed.ProcessGroup | None = None
    """Where calls travel; None where there is nobody else."""
    before_leaving: list[Callable[[], None]] = field(default_factory=list)
    """What lets go of the group's work: NCCL waits for as long as a CUDA graph holds some of it."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    def tell(self, name: str, *arguments: object, **named: object) -> None:
        """Have the others make this call too, where this process leads; tensors travel by way of the CPU."""
        if self.leads and not self.is_alone:
            call = [(name, tuple(map(_on_cpu, arguments)), {key: _on_cpu(value) for key, value in named.items()})]
            distributed.broadcast_object_list(call, src=0, group=self.control)

    def heard(self) -> Call | None:
        """The leader's next call: name, arguments, named arguments; None when it has ended, well or not."""
        call: list[Call | None] = [None]
        try:
            distributed.broadcast_object_list(call, src=0, group=self.control)
        except RuntimeError as error:  # the leader was killed
            raise LeftOut(1) from error
        return call[0]

    def stop(self) -> None:
        """Let the others end, where this process leads."""
        if self.leads and not self.is_alone:
            with suppress(RuntimeError):  # of a process that has ended by itself
                distributed.broadcast_object_list([STOP], src=0, group=self.control)

    def share(self, count: int) -> Tensor | slice:
        """Which of `count` things this process does: as many for each, the last thing again where there are too few."""
        if self.is_alone:
            return slice(None)
        each = -(-count // self.size)
        return torch.arange(self.rank * each, (self.rank + 1) * each).clamp_(max=count - 1)

    def joined(self, part: Tensor, count: int) -> Tensor:
        """The parts (each, …) of all processes put together, (count, …): the reverse of `share`."""
        if self.is_alone:
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts)[:count]

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """What any of the processes raises inside as a `UserError` ends them all; the leader raises it."""
        if self.is_alone:
            yield
            return
        said: str | None = None
        try:
            yield
        except UserError as error:
            said = str(error)
        everyone: list[str | None] = [None] * self.size
        distributed.all_gather_object(everyone, said, group=self.control)
        found = [message for message in everyone if message is not None]
        if found and self.leads:
            raise UserError(found[0])
        if found:
            self.heard()  # whoever ended now would cut the leader off
            raise LeftOut(FAILED)


def _on_cpu(value: object) -> object:
    return value.detach().cpu().contiguous() if isinstance(value, Tensor) else value


ALONE = TeacherGroup()
_JOINED = itertools.count()
"""How often this process has joined a group, as often as the others: what a group has left in the store stays there."""


def group_size(parallel: int) -> int:
    """Processes that share a teacher cut `parallel` ways: all of those, or 1 where no launcher started several."""
    return parallel if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 1


@contextmanager
def joined_group(parallel: int, *, on_gpus: bool) -> Iterator[TeacherGroup]:
    """This process' group among those that a launcher started; `ALONE` where one process holds the whole teacher.

    Raises `UserError` if as many processes cannot be divided into groups of `parallel`.
    """
    if group_size(parallel) == 1:
        yield ALONE
        return
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with _said_once(rank):
        _require_whole_groups(parallel, world)
        if on_gpus:
            _take_gpu(parallel)
    store, _, _ = next(rendezvous("env://"))
    distributed.init_process_group(
        backend="cpu:gloo,cuda:nccl" if on_gpus else "gloo",
        store=PrefixStore(f"teacher-{next(_JOINED)}-{rank // parallel}", store),
        rank=rank % parallel,
        world_size=parallel,
    )
    group = TeacherGroup(rank % parallel, parallel, distributed.new_group(backend="gloo", timeout=PATIENCE))
    try:
        yield group
    except (UserError, LeftOut):
        _leave(group)
        raise
    # After any other error the rest may wait for this process amid a pass, and hear nothing: the launcher ends them.
    _leave(group)


def _leave(group: TeacherGroup) -> None:
    group.stop()
    for let_go in group.before_leaving:
        let_go()
    distributed.destroy_process_group()


@contextmanager
def _said_once(rank: int) -> Iterator[None]:
    """What all processes find at once, the first one says."""
    try:
        yield
    except UserError as error:
        if rank == 0:
            raise
        raise LeftOut(FAILED) from error


def _require_whole_groups(parallel: int, world: int) -> None:
    if world % parallel == 0:
        return
    fitting = [n for n in range(1, world + 1) if world % n == 0]
    raise UserError(
        f"teacher.parallel {parallel}: torchrun started {world} processes, no whole number of teachers; start "
        f"{parallel} or a multiple (--nproc-per-node), or set it to one of {', '.join(map(str, fitting))}"
    )


def _take_gpu(parallel: int) -> None:
    """Each process computes on the GPU of its own that transformers takes too."""
    place, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    asked = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if asked > there:
        raise UserError(
            f"teacher.parallel {parallel}: {asked} processes on a machine with {there} GPUs, and each needs its own; "
            f"start {there} (--nproc-per-node)"
        )
    torch.cuda.set_device(place)
