"""A GPU's work on batches of one shape, recorded as a CUDA graph and replayed: one launch in place of a thousand."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import masking_utils

Run = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    outputs: tuple[Tensor, ...]


class _Thread(threading.local):
    """What a thread says of the rows that it is running; other threads may run other teachers meanwhile."""

    rows_not_packed = False


_this_thread = _Thread()
_find_packed_sequences = masking_utils.find_packed_sequence_indices


def _packed_sequences(position_ids: Tensor) -> Tensor | None:
    return None if _this_thread.rows_not_packed else _find_packed_sequences(position_ids)


# Once and for good. Replaced for the time of a pass and then put back, two passes in two threads could each put back
# what the other had set: from then on no teacher of the process would have kept documents apart.
masking_utils.find_packed_sequence_indices = _packed_sequences


@contextmanager
def rows_not_packed() -> Iterator[None]:
    """Have transformers take it that each row is one sequence, which is so where no position ids are given.

    It looks for packed sequences in the position ids. While a graph is recorded it cannot look, and gives attention a
    mask in case there are some: a slower kernel than without, that rounds otherwise. So the same batch would come out
    different for being the first.
    """
    _this_thread.rows_not_packed = True
    try:
        yield
    finally:
        _this_thread.rows_not_packed = False


class Captured:
    """Calls `run` on tensors on a GPU. The second call with a shape is recorded, later ones replay the recording.

    If `run` cannot be recorded, because it waits for the GPU, every call runs it, and a line on stderr says so.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: set[torch.Size] = set()
        self._recordings: dict[torch.Size, _Recording] = {}
        self._can_be_recorded = True

    def __call__(self, inputs: Tensor) -> tuple[Tensor, ...]:
        shape = inputs.shape
        if self._can_be_recorded and shape in self._seen and shape not in self._recordings:
            self._record(inputs)
        if shape not in self._recordings:
            self._seen.add(shape)
            return self._run(inputs)
        recording = self._recordings[shape]
        recording.inputs.copy_(inputs, non_blocking=True)
        recording.graph.replay()
        return tuple(output.clone() for output in recording.outputs)

    def _record(self, inputs: Tensor) -> None:
        static, graph = inputs.clone(), torch.cuda.CUDAGraph()
        try:
            # Its stream is of the device that the work is on: what runs on another is not recorded.
            stream = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                outputs = self._run(static)
        except RuntimeError as error:
            self._can_be_recorded = False
            reason = str(error).partition("\n")[0]
            print(f"note: the teacher's passes cannot be recorded ({reason}), and run as they are", file=sys.stderr)
        else:
            self._recordings[inputs.shape] = _Recording(graph, static, outputs)
