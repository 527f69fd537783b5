"""What a step cost: a line of `costs.jsonl`, apart from `metrics.jsonl`, which a continued run repeats to the byte."""

import resource
from dataclasses import dataclass

import torch

from student.engine import Processes


@dataclass(frozen=True)
class StepCost:
    """One step as the first process saw it; tokens are the valid ones of all processes.

    seconds are of the step alone, without evaluations and checkpoints; waiting are those of them spent waiting for
    data; peak_bytes is the most memory the process has held so far, the GPU's where there is one.
    """

    step: int
    tokens: int
    seconds: float
    waiting: float
    peak_bytes: int
    machine: str


def step_cost(step: int, tokens: int, seconds: float, waiting: float, processes: Processes) -> StepCost:
    """The cost of a step that has just been taken."""
    device = processes.device
    if device.type == "cuda":
        peak, name = torch.cuda.max_memory_allocated(device), torch.cuda.get_device_name(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        name = f"CPU with {torch.get_num_threads()} threads"
    machine = f"{processes.world_size} × {name}, torch {torch.__version__}"
    return StepCost(step, tokens, seconds, waiting, peak, machine)
