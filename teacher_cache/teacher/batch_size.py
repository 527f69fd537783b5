"""`compute.batch_size: auto` tries 1, 2, 4, … rows per forward pass, until more are no faster or do not fit."""

import os
import time
from collections.abc import Callable

import torch

from delta_common.errors import UserError
from teacher_cache.teacher.model import Teacher

LARGEST = 512
WORTHWHILE = 1.03
"""Twice as many rows must be faster per row by this factor."""
MEMORY_SHARE = 0.5
"""Share of the free memory that a batch may take; the rest is for logits, targets and two shards."""
PATIENCE = 20.0
"""Seconds; a batch that takes longer is large enough."""


def find_batch_size(teacher: Teacher, seq_len: int) -> int:
    """The power of 2 at which this teacher is fastest on this machine, in rows, found by trying."""
    memory = _free_bytes(teacher.device) * MEMORY_SHARE

    def seconds(rows: int) -> float | None:
        if rows * seq_len * teacher.bytes_per_token > memory:
            return None
        return _seconds(teacher, rows, seq_len)

    return largest_worthwhile(seconds)


def largest_worthwhile(seconds: Callable[[int], float | None]) -> int:
    """The largest of 1, 2, 4, … rows, up to `LARGEST`, before which each doubling made a row faster.

    `seconds` gives the time of a batch of so many rows, None if it does not fit into memory.
    """
    best, best_seconds = 1, seconds(1)
    while best < LARGEST and best_seconds is not None and best_seconds < PATIENCE:
        found = seconds(2 * best)
        if found is None or found * WORTHWHILE > 2 * best_seconds:
            break
        best, best_seconds = 2 * best, found
    return best


@torch.inference_mode()
def _seconds(teacher: Teacher, rows: int, seq_len: int) -> float | None:
    """Seconds of a forward pass and its LM head, the better of two tries; None if memory runs out."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, teacher.vocab_size, (rows, seq_len), generator=random)
    times = []
    try:
        for _ in range(2):
            started = time.perf_counter()
            final = teacher.states(tokens, mean=True, recorded=False).final
            share = -(-tokens.numel() // teacher.devices)
            for _ in teacher.logits_in_chunks(final.flatten(0, 1)[:share]):
                pass
            if teacher.device.type == "cuda":
                torch.cuda.synchronize(teacher.device)
            times.append(time.perf_counter() - started)
    except torch.cuda.OutOfMemoryError as error:
        if teacher.devices > 1:  # the other processes still wait for this one
            raise UserError("compute.batch_size auto: a GPU ran out of memory; set it to a number of rows") from error
        return None
    finally:
        teacher.forget_shapes()
        if teacher.device.type == "cuda":
            torch.cuda.empty_cache()
    return min(times)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
