"""Float32 parameters and AdamW's moments, whole and by name.

DeepSpeed keeps them in five ways: float32 parameters alone, copies beside 16-bit ones, and for ZeRO 1, 2 and 3 flat
buffers split over the processes. Here they have one form for any number of processes and any stage, so a run may
continue with others. These functions are collective: every process calls them.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor
from torch.nn import Parameter, functional

from student.run.checkpoints import PARAMETER

MOMENTS = ("exp_avg", "exp_avg_sq")


def gathered_states(
    engine: deepspeed.DeepSpeedEngine, *, updates: int, untrained: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """`parameter/NAME` of every parameter, `exp_avg/NAME` and `exp_avg_sq/NAME` of trained ones, one at a time.

    All are float32. Before the first update there are no moments. Parameters that are not trained come out of
    `untrained` where it has them by name.
    """
    masters = _unpartitioned_masters(engine)
    if updates:
        _show_moments(engine)
    for name, parameter in _trained(engine):
        yield f"{PARAMETER}/{name}", _master(parameter, masters)
        for moment in MOMENTS if updates else ():
            yield f"{moment}/{name}", _moment(engine, parameter, moment, masters)
    for name, parameter in _untrained(engine):
        # Every process gathers, whether or not it is the one that knows better.
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            yield f"{PARAMETER}/{name}", (untrained or {}).get(name, parameter.detach().float())


def restore_states(
    engine: deepspeed.DeepSpeedEngine,
    stored: Callable[[str], Tensor],
    *,
    updates: int,
    known: Container[str] = frozenset(),
) -> None:
    """Put every trained parameter and its moments back, and those parameters besides whose names are `known`.

    `stored` gives the tensor of a name.
    """
    if updates:
        _make_moments(engine, updates)
    masters = _unpartitioned_masters(engine)
    for name, parameter in _trained(engine):
        master = stored(f"{PARAMETER}/{name}")
        _set_parameter(parameter, master)
        _set(engine, parameter, master, None, masters)
        for moment in MOMENTS if updates else ():
            _set(engine, parameter, stored(f"{moment}/{name}"), moment, masters)
    for name, parameter in _untrained(engine):
        if f"{PARAMETER}/{name}" in known:
            _set_parameter(parameter, stored(f"{PARAMETER}/{name}"))


def parameter_shapes(engine: deepspeed.DeepSpeedEngine) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by name, whole also where ZeRO 3 has split them."""
    return {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in engine.module.named_parameters()}


def untrained_names(engine: deepspeed.DeepSpeedEngine) -> list[str]:
    """Names of the parameters that are not trained."""
    return [name for name, _ in _untrained(engine)]


def _trained(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if p.requires_grad)


def _untrained(engine: deepspeed.DeepSpeedEngine) -> Iterator[tuple[str, Parameter]]:
    return ((name, p) for name, p in engine.module.named_parameters() if not p.requires_grad)


def _unpartitioned_masters(engine: deepspeed.DeepSpeedEngine) -> dict[Parameter, Tensor] | None:
    """Each parameter's float32 tensor where one process holds all of it; None where they are split or flattened."""
    if engine.optimizer is engine.basic_optimizer:
        return {parameter: parameter for _, parameter in _trained(engine)}
    if isinstance(engine.optimizer, FP16_UnfusedOptimizer):
        groups = zip(engine.optimizer.fp16_groups, engine.optimizer.fp32_groups, strict=True)
        return {low: high for lows, highs in groups for low, high in zip(lows, highs, strict=True)}
    return None


def _master(parameter: Parameter, masters: dict[Parameter, Tensor] | None) -> Tensor:
    whole: Tensor = safe_get_full_fp32_param(parameter) if masters is None else masters[parameter].detach()
    return whole


def _moment(
    engine: deepspeed.DeepSpeedEngine, parameter: Parameter, moment: str, masters: dict[Parameter, Tensor] | None
) -> Tensor:
    if masters is None:
        whole: Tensor = safe_get_full_optimizer_state(parameter, moment)
        return whole
    state: Tensor = engine.basic_optimizer.state[masters[parameter]][moment]
    return state


def _make_moments(engine: deepspeed.DeepSpeedEngine, updates: int) -> None:
    """Give AdamW its states, which it otherwise makes at its first step."""
    groups = engine.basic_optimizer.param_groups
    held = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO 3
    for tensor in held or [tensor for group in groups for tensor in group["params"]]:
        engine.basic_optimizer.state[tensor] = {
            "step": torch.tensor(float(updates), device=tensor.device if groups[0].get("fused") else None),
            **{moment: torch.zeros_like(tensor, requires_grad=False) for moment in MOMENTS},
        }
    _show_moments(engine)


def _show_moments(engine: deepspeed.DeepSpeedEngine) -> None:
    """Let DeepSpeed find AdamW's states under ZeRO 1 and 2: it looks once, when one of several groups has stepped."""
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _set_parameter(parameter: Parameter, master: Tensor) -> None:
    """The parameter the student computes with, rounded to its own precision."""
    partitioned = hasattr(parameter, "ds_id")
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=partitioned), torch.no_grad():
        if not partitioned or torch.distributed.get_rank() == 0:
            parameter.copy_(master)


def _set(
    engine: deepspeed.DeepSpeedEngine,
    parameter: Parameter,
    whole: Tensor,
    moment: str | None,
    masters: dict[Parameter, Tensor] | None,
) -> None:
    """Put a float32 tensor where the optimizer looks for a parameter (`moment` None) or one of its moments."""
    if masters is not None:
        held = masters[parameter]
        with torch.no_grad():
            (held if moment is None else engine.basic_optimizer.state[held][moment]).copy_(whole)
    elif hasattr(parameter, "ds_id"):
        part = _own_part(parameter, whole)
        if moment is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, moment)
    elif moment is None:
        safe_set_full_fp32_param(parameter, whole)
    else:
        safe_set_full_optimizer_state(parameter, whole, moment)


def _own_part(parameter: Any, whole: Tensor) -> Tensor:
    """This process's part under ZeRO 3: equal parts, the last one filled up with zeros."""
    size = parameter.ds_tensor.numel()
    padded = functional.pad(whole.flatten(), (0, size * torch.distributed.get_world_size() - whole.numel()))
    return padded[torch.distributed.get_rank() * size :][:size]
