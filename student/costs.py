"""What a step cost: a line of `costs.jsonl`, apart from `metrics.jsonl`, which a continued run repeats to the byte."""

import resource

import torch

from student.engine import Processes
from student.run.records import StepCost


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
