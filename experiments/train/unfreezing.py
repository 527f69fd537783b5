"""From some step on, train the embedding and the LM head too."""

from typing import Any

from torch import nn

from student.model.student import Student

SHARE_OF_RATE = 0.1
"""Share of the blocks' learning rate: these matrices are trained already."""


def unfreeze(engine: Any, student: Student) -> None:
    """Make the frozen matrices parameters of the running optimizer, on the same learning-rate schedule; float32 only.

    A tied pair stays one matrix. The tensors that were frozen keep their values.
    """
    names = [name for name in ("embedding", "lm_head") if getattr(student, name) is not None]
    parameters = []
    for name in names:
        frozen = student._buffers.pop(name)
        assert frozen is not None
        student._non_persistent_buffers_set.discard(name)
        student.register_parameter(name, nn.Parameter(frozen.clone()))
        parameters.append(getattr(student, name))
    first, scheduler = engine.optimizer.param_groups[0], engine.lr_scheduler
    now, peak = SHARE_OF_RATE * first["lr"], SHARE_OF_RATE * first["initial_lr"]
    engine.optimizer.add_param_group({"params": parameters, "lr": now, "initial_lr": peak})
    scheduler.base_lrs.append(peak)
    scheduler.lr_lambdas.append(scheduler.lr_lambdas[0])
