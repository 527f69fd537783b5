"""The DeepSpeed engine: its configuration merged with our settings, and what has to be corrected around it.

Nothing is compiled. DeepSpeed builds C++ operations when they are first used. With torch's AdamW the only one it would
build on a CPU is a shared-memory all-reduce for inference (half a minute, and it needs a compiler); `quiet_deepspeed`
prevents that.
"""

import gc
import json
import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from delta_common.errors import UserError
from delta_common.files import parse_json
from student.model.student import is_beside
from student.model.transplant.student import TransplantStudent
from student.settings import Part, TrainSettings

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer


DeepSpeedJSON = dict[str, Any]
"""A DeepSpeed JSON, or a section of one."""

NORM_EPSILON = 1e-6
"""Added to a norm before clipping, as DeepSpeed does."""

KNOWN_KEYS = (
    *("fp16", "bf16", "torch_autocast", "data_types", "zero_optimization", "zero_allow_untested_optimizer"),
    *("zero_force_ds_cpu_optimizer", "train_batch_size", "train_micro_batch_size_per_gpu"),
    *("gradient_accumulation_steps", "gradient_clipping", "gradient_predivide_factor", "prescale_gradients"),
    *("communication_data_type", "seq_parallel_communication_data_type", "activation_checkpointing", "aio", "compile"),
    *("checkpoint", "dataloader_drop_last", "disable_allgather", "disable_python_gc", "dump_state", "steps_per_print"),
    *("log_level", "wall_clock_breakdown", "memory_breakdown", "timers", "comms_logger", "flops_profiler"),
    *("tensorboard", "wandb", "csv_monitor", "comet"),
)
"""Keys of a DeepSpeed JSON that mean here what they mean to DeepSpeed, which ignores keys it does not know."""


def deepspeed_config(settings: TrainSettings, *, world_size: int, out: Path) -> DeepSpeedJSON:
    """The user's DeepSpeed JSON, or ZeRO 0 without one, completed from our settings.

    A key that our settings decide may be left out or "auto". Raises `UserError` where it contradicts them.
    """
    config = _read_json(settings.deepspeed)
    where = str(settings.deepspeed)
    for key in ("optimizer", "scheduler", "amp"):
        if key in config:
            raise UserError(
                f"{where}: {key!r} does not belong here; remove it and use the optimizer section of the settings"
            )
    _require_known(config, where)
    training = settings.training
    _settle(config, where, "train_micro_batch_size_per_gpu", training.micro_batch_size, "training.micro_batch_size")
    _settle(
        config, where, "gradient_accumulation_steps", training.gradient_accumulation, "training.gradient_accumulation"
    )
    _settle(config, where, "train_batch_size", training.global_batch(world_size), "the batch over all processes")
    _settle(config, where, "gradient_clipping", settings.optimizer.gradient_clipping, "optimizer.gradient_clipping")
    meaning = f"training.precision {training.precision}, which means"
    for kind in ("fp16", "bf16", "torch_autocast"):
        section = _section(config, where, kind, '{"enabled": true}')
        _settle(section, where, "enabled", training.precision == kind, meaning, f"{kind}.enabled")
    zero = _section(config, where, "zero_optimization", '{"stage": 2}')
    zero["stage"] = 0 if zero.get("stage", "auto") == "auto" else zero["stage"]
    # torch's AdamW also steps states kept in host memory; DeepSpeed's own would have to be compiled.
    config.setdefault("zero_force_ds_cpu_optimizer", False)
    for monitor in ("tensorboard", "csv_monitor"):
        if isinstance(config.get(monitor), dict):
            config[monitor].setdefault("output_path", str(out / "monitor"))
    return config


def make_engine(
    module: nn.Module,
    settings: TrainSettings,
    config: DeepSpeedJSON,
    multiplier: Callable[[int], float],
    part: Part = "all",
) -> "DeepSpeedEngine":
    """A DeepSpeed engine: AdamW over one part of the parameters, learning rate times `multiplier(step)`.

    Raises `UserError` for a configuration DeepSpeed refuses.
    """
    import deepspeed

    _require_valid(config, settings)
    wanted = settings.optimizer
    trainable = parameter_groups(module, settings, part)
    is_plain = settings.training.precision == "fp32" and not config["zero_optimization"].get("stage")
    optimizer = (_SkippingAdamW if is_plain else torch.optim.AdamW)(
        trainable,
        lr=wanted.learning_rate,
        betas=wanted.betas,
        weight_decay=wanted.weight_decay,
        fused=next(module.parameters()).is_cuda,
    )
    scheduler = LambdaLR(optimizer, multiplier)
    try:
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, lr_scheduler=scheduler, config=config)
    except ImportError as error:
        raise UserError(
            f"{settings.deepspeed}: asks for a package that is not installed ({error}); install it"
        ) from error
    _undo_first_step(engine)
    return engine


def free_memory() -> None:
    """Give back the memory of an engine that nobody refers to any more: its parts refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def parameter_groups(module: nn.Module, settings: TrainSettings, part: Part = "all") -> list[dict[str, Any]]:
    """What the optimizer trains: new parameters, and the teacher's own with their learning rate.

    The others no longer require a gradient. Raises `UserError` where a student has none of its teacher's.
    """
    rate = settings.optimizer.body_learning_rate
    if rate is not None and not isinstance(module, TransplantStudent):
        raise UserError("optimizer.body_learning_rate: this student begins without its teacher's weights; leave it out")
    trained, new = trained_names(module, settings, part), _new_names(module)
    groups: list[dict[str, Any]] = [{"params": []}, {"params": []}]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
        if name in trained:
            groups[name not in new]["params"].append(parameter)
    if rate is not None:
        groups[1]["lr"] = rate
    return [group for group in groups if group["params"]]


def trained_names(module: nn.Module, settings: TrainSettings, part: Part) -> set[str]:
    """Names of the parameters of a part; those of the teacher's own are left out where their learning rate is 0."""
    new, names = _new_names(module), {name for name, _ in module.named_parameters()}
    body = names - new if settings.optimizer.body_learning_rate != 0 else set()
    beside = set(filter(is_beside, names)) if settings.trains_map else set()
    own = {"all": new | body, "mixers": new, "body": body}[part]
    return {name for name in own if not is_beside(name)} | beside


def _new_names(module: nn.Module) -> set[str]:
    """Names of the parameters that are not the teacher's own."""
    if isinstance(module, TransplantStudent):
        return module.new_names() | {name for name, _ in module.named_parameters() if is_beside(name)}
    return {name for name, _ in module.named_parameters()}


class _SkippingAdamW(torch.optim.AdamW):
    """AdamW for float32 without ZeRO, where DeepSpeed steps even if the gradient is not finite.

    Clipping by an infinite norm would turn every parameter into NaN. The engine reads `overflow` as it does on its own
    optimizers.
    """

    overflow = False

    def step(self, closure: Any = None) -> Any:
        return None if self.overflow else super().step(closure)


def backward(engine: "DeepSpeedEngine", loss: Tensor) -> None:
    """`engine.backward` of a micro-batch's loss that is already divided by the counts of the whole step.

    DeepSpeed's fp16 optimizer divides gradients by the loss scale, but its engine multiplies the loss by it only under
    ZeRO; without ZeRO this function does.
    """
    scale = loss_scaler(engine).cur_scale if _is_16_bit_without_zero(engine) else 1.0
    engine.backward(loss * scale, scale_wrt_gas=False)


def gradient_norm(engine: "DeepSpeedEngine") -> float | None:
    """The norm of the whole gradient before clipping, without ZeRO; call before `engine.step()`.

    There the engine keeps no norm in float32, and that of the scaled gradients in fp16. Infinite where a gradient is
    not finite. None under ZeRO, where `engine.get_global_grad_norm()` has it.
    """
    if engine.zero_optimization_stage():
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if _is_16_bit_without_zero(engine):
        norm /= loss_scaler(engine).cur_scale
    return norm if math.isfinite(norm) else math.inf


def announce_norm(engine: "DeepSpeedEngine", norm: float | None) -> None:
    """Say what `gradient_norm` gave to the next `engine.step()`, which changes nothing if it is not finite."""
    if norm is None:
        return
    if isinstance(engine.optimizer, _SkippingAdamW):
        engine.optimizer.overflow = not math.isfinite(norm)
    elif _is_16_bit_without_zero(engine):
        engine.optimizer.step = partial(_step_at_once, engine.optimizer, norm)


@torch.no_grad()
def _step_at_once(optimizer: "FP16_UnfusedOptimizer", norm: float) -> bool:
    """DeepSpeed's step of a 16-bit student without ZeRO, over all parameters at once; whether it was skipped.

    DeepSpeed's own launches a dozen small kernels for every parameter, takes the norm in 16 bits, and where it raises
    the loss scale divides by the new one.
    """
    optimizer.overflow = not math.isfinite(norm)
    if optimizer.overflow:
        return bool(optimizer._skip_invalid_grad_norm())
    scale = optimizer.loss_scale_config.cur_scale
    optimizer._global_grad_norm = norm * scale
    optimizer._update_scale(False)
    clip = (norm + NORM_EPSILON) / optimizer.clip_grad if optimizer.clip_grad > 0 else 0.0
    low, high = list(chain(*optimizer.fp16_groups)), list(chain(*optimizer.fp32_groups))
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in low]
    wide = [torch.empty_like(master, requires_grad=False) for master in high]
    torch._foreach_copy_(wide, gradients)
    torch._foreach_mul_(wide, 1 / (scale * max(clip, 1.0)))
    for master, gradient in zip(high, wide, strict=True):
        master.grad = gradient
    optimizer.optimizer.step()
    for master in high:
        master.grad = None
    torch._foreach_copy_(low, high)
    return False


def loss_scaler(engine: "DeepSpeedEngine") -> Any:
    """DeepSpeed's object with the loss scale (`cur_scale`) and its counters; None in float32 without ZeRO."""
    optimizer = engine.optimizer
    return optimizer.loss_scale_config if _is_16_bit_without_zero(engine) else getattr(optimizer, "loss_scaler", None)


def _is_16_bit_without_zero(engine: "DeepSpeedEngine") -> bool:
    from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer

    return isinstance(engine.optimizer, FP16_UnfusedOptimizer)


def _undo_first_step(engine: "DeepSpeedEngine") -> None:
    """Undo the step with zero gradients that DeepSpeed takes to allocate AdamW's states in 16 bits without ZeRO.

    AdamW would count it as an update when it corrects its moments, and it decays the weights.
    """
    if _is_16_bit_without_zero(engine):
        engine.optimizer.refresh_fp32_params()
        engine.basic_optimizer.state.clear()


def _require_valid(config: DeepSpeedJSON, settings: TrainSettings) -> None:
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.config import DeepSpeedConfig

    accelerator, precision = get_accelerator(), settings.training.precision
    supported = {"fp32": True, "bf16": accelerator.is_bf16_supported(), "fp16": accelerator.is_fp16_supported()}
    if not supported[precision]:
        remedy = " or ".join(name for name, works in supported.items() if works)
        raise UserError(f"training.precision {precision}: not supported on {accelerator.device_name()}; use {remedy}")
    try:
        DeepSpeedConfig(json.loads(json.dumps(config)))
    except (ValueError, TypeError, AssertionError, AttributeError) as error:
        raise UserError(f"{settings.deepspeed}: DeepSpeed refuses this configuration: {error}") from error


def _read_json(path: Path | None) -> DeepSpeedJSON:
    if path is None:
        return {}
    try:
        config = parse_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"deepspeed: {path}: no such file; give a DeepSpeed JSON or leave the option out") from None
    except (OSError, ValueError) as error:
        raise UserError(f"deepspeed: {path}: not readable as JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"deepspeed: {path}: expected a JSON object, got a {type(config).__name__}")
    return config


def _require_known(config: DeepSpeedJSON, where: str) -> None:
    """Raise `UserError` for a key that DeepSpeed would ignore, or that this training has no use for."""
    for key in config:
        if key not in KNOWN_KEYS and not key.startswith("_"):
            near = get_close_matches(key, KNOWN_KEYS, n=1)
            raise UserError(
                f"{where}: {key!r} has no meaning here; remove it" + "".join(f", or write {n!r}" for n in near)
            )


def _section(config: DeepSpeedJSON, where: str, key: str, example: str) -> DeepSpeedJSON:
    """The section `key`, empty if there was none."""
    section: Any = config.setdefault(key, {})
    if not isinstance(section, dict):
        raise UserError(f"{where}: {key} must be a section such as {example}, not {json.dumps(section)}")
    return section


def _settle(section: DeepSpeedJSON, where: str, key: str, value: Any, option: str, name: str | None = None) -> None:
    if section.get(key, "auto") not in ("auto", value):
        raise UserError(
            f"{where}: {name or key} {section[key]!r} differs from {option} {value!r}; remove it or make them equal"
        )
    section[key] = value
