"""What trainings of the experiments leave, for tests of the tables and plots of them."""

import json

from experiments.plan import ExperimentPlan, Folder

PLAN = ExperimentPlan("teacher", None, 8, rows=8, held_out=4, epochs=1, batch=4, options=())


def leave_result(folder: Folder, variant: str, seed: int, cross_entropy: float) -> None:
    out = folder.run(variant, seed)
    out.mkdir(parents=True)
    figures = dict.fromkeys(("kl", "agreement", "calibration_error", "gradient_norm", "seconds"), cross_entropy)
    sizes = {"variant": variant, "seed": seed, "steps": 2, "device": "a device", "torch": "2"}
    (out / "result.json").write_text(json.dumps({**sizes, "cross_entropy": cross_entropy, **figures}))
