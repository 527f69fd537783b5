"""Results of a comparison as trainings would have left them."""

import json
from pathlib import Path

from experiments.worth.plan import WorthFolder, WorthPlan

PLAN = WorthPlan("some/teacher", "corpus", seq_len=16, rows=64, held_out=4, points=2, options=("--model.heads=4",))


def write_result(folder: WorthFolder, name: str, seed: int, kl: float, tokens: tuple[int, ...] = (0, 10**6)) -> None:
    """One training, whose KL falls from 9 to `kl`."""
    points = [
        {"step": at, "tokens": at, "cross_entropy": 2 + value, "kl": value, "agreement": 0.5, "calibration_error": 0.1}
        for at, value in zip(tokens, [9.0] * (len(tokens) - 1) + [kl], strict=True)
    ]
    found = {"name": name, "seed": seed, "points": points, "trainable_parameters": 1234, "machine": "a machine"}
    _write(folder.results / f"{name}-seed-{seed}.json", found | {"teacher": {"cross_entropy": 2.0}})


def write_alone(folder: WorthFolder, name: str) -> None:
    """What a step of it takes."""
    found = {"name": name, "seconds": 0.05, "tokens_per_second": 1000.0, "mfu": None, "peak_bytes": 2**30}
    _write(folder.results / f"{name}-alone.json", found)


def write_tasks(folder: WorthFolder, name: str, right: float) -> None:
    """That it is right so often in a task, where its teacher always is, and what it wrote."""
    score = {"value": right, "low": right - 0.1, "high": right + 0.1}
    whole = {"value": 1.0, "low": None, "high": None}
    task = {"task": "needle-4k", "measure": "generation", "examples": 20, "student": score, "teacher": whole}
    own = {"by": "student", "way": "drawn", "perplexity": {"value": 25.8, "low": 20.0, "high": 30.0}}
    text = {"by": "the text itself", "way": "", "perplexity": {"value": 9.0, "low": 8.0, "high": 10.0}}
    writing = [each | {"repetition": whole} for each in (own, text)]
    _write(folder.results / f"{name}-tasks.json", {"name": name, "tasks": [task], "writing": writing})


def _write(path: Path, found: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
