"""One process alone: a group of one, left at the end by whoever joined it."""

import torch
from torch.nn import functional

from student.train.processes import joined_processes, quiet_deepspeed


def test_one_process_is_its_own_group_and_leaves_it() -> None:
    with quiet_deepspeed(), joined_processes() as processes:
        assert (processes.rank, processes.world_size) == (0, 1)
        assert processes.sum(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0]
        with joined_processes() as again:
            assert (again.rank, again.world_size, again.device) == (0, 1, processes.device)
        assert torch.distributed.is_initialized(), "who joined a group that was there does not end it"
    assert not torch.distributed.is_initialized()


def test_what_zero_3_replaces_is_put_back() -> None:
    before = functional.linear
    with quiet_deepspeed(), joined_processes():
        functional.linear = lambda *_: None  # type: ignore[assignment, misc]
    assert functional.linear is before
