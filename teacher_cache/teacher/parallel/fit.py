"""Whether a teacher fits: what its weights take on each of N devices, told from its configuration alone."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from delta_common.errors import UserError
from delta_common.machine.matrix_work import Operations, has_experts, product_parameters
from delta_common.progress import byte_size
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.parts import output_head

Cut = Literal["tensors", "layers"]
"""What of a teacher is divided among devices: each matrix, or the list of layers."""
MOST_DEVICES = 64
ROOM_ON_GPU = 2 * 2**30
"""Bytes beside the weights: 1 GiB of logits, and as much for their targets and a small batch."""
COPIED = re.compile(r"\.\d+(?=\.|$)")
CUTTING = ("colwise", "rowwise", "grouped_gemm")
"""What the names of those styles of a tensor-parallel plan contain that give each process a part of a parameter."""
KEYS = {"k_proj", "qkv_proj"}
"""Projections that give the keys of attention, by the last part of their names."""


@dataclass(frozen=True)
class TeacherSize:
    """What a teacher's weights take, and how they can be cut."""

    parameters: int
    bytes: int
    """Of all weights."""
    cut_bytes: int
    """Of those that transformers' tensor-parallel plan divides among processes; 0 where a model has no plan."""
    heads: tuple[tuple[str, int], ...]
    """What a cut must divide, by name: attention heads, and key-value heads where the plan cuts them apart."""
    operations: Operations | None
    """Of a forward pass; None for a teacher with experts."""
    bytes_per_token: int
    """Of a forward pass, roughly, beside the weights."""

    @property
    def has_plan(self) -> bool:
        return self.cut_bytes > 0

    def bytes_each(self, parallel: int) -> int:
        """Of the weights in each of so many processes."""
        return self.bytes - self.cut_bytes + -(-self.cut_bytes // parallel)

    def divides(self, parallel: int) -> bool:
        """Whether every process would have as many whole heads."""
        return self.has_plan and all(count % parallel == 0 for _, count in self.heads)

    @property
    def cuts(self) -> list[int]:
        """Into how many parts its matrices can be cut, from 1 on."""
        return [n for n in range(1, MOST_DEVICES + 1) if n == 1 or self.divides(n)]

    def fewest(self, memory: float, beside: float = 0.0) -> tuple[int, Cut] | None:
        """The fewest devices of so much memory that hold it with `beside` on each, and how; None if no number does.

        Its layers are spread only where its matrices cannot be cut far enough.
        """
        for parts in self.cuts:
            if self.bytes_each(parts) + beside <= memory:
                return parts, "tensors"
        spread = (n for n in range(2, MOST_DEVICES + 1) if self.bytes <= n * (memory - beside))
        return next(((n, "layers") for n in spread), None)


def teacher_size(config: PreTrainedConfig, dtype: torch.dtype) -> TeacherSize:
    """The size of the causal language model of a configuration, built on the meta device, which has no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    parameters = dict(model.named_parameters())
    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    plan = dict(getattr(model, "tp_plan", None) or {})
    cut = sum(p.numel() for name, p in parameters.items() if id(p) not in ends and is_cut(name, plan))
    count, width = sum(p.numel() for p in parameters.values()), dtype.itemsize
    return TeacherSize(
        count, count * width, cut * width, _heads(model, plan), _operations(model), _per_token(model, width)
    )


def is_cut(parameter: str, plan: dict[str, str]) -> bool:
    """Whether a plan gives each process a part of the parameter."""
    style = style_of(parameter, plan) or style_of(parameter.rpartition(".")[0], plan)
    return any(word in style for word in CUTTING)


def style_of(name: str, plan: dict[str, str]) -> str:
    """What a tensor-parallel plan, with `*` for a layer's number, does with a module or parameter; empty if nothing."""
    return plan.get(COPIED.sub(".*", name), "")


def _heads(model: PreTrainedModel, plan: dict[str, str]) -> tuple[tuple[str, int], ...]:
    config = model.config.get_text_config(decoder=True)
    cut = {name.rpartition(".")[2] for name, style in plan.items() if "attn" in name or "attention" in name
           if style in ("colwise", "packed_colwise")}  # fmt: skip
    wanted = {"attention heads": "num_attention_heads"} if cut else {}
    if cut & KEYS:
        wanted["key-value heads"] = "num_key_value_heads"
    found = {words: getattr(config, field, None) for words, field in wanted.items()}
    return tuple((words, count) for words, count in found.items() if isinstance(count, int))


def _operations(model: PreTrainedModel) -> Operations | None:
    if has_experts(model):
        return None
    head = output_head(model, "").weight
    body = sum(p.numel() for _, p in product_parameters(model) if p is not head)
    return Operations(2 * body, 2 * head.numel())


def _per_token(model: PreTrainedModel, width: int) -> int:
    config = model.config.get_text_config(decoder=True)
    return activation_bytes(config.hidden_size, getattr(config, "intermediate_size", None), width)


def activation_bytes(hidden: int, intermediate: object, width: int) -> int:
    """Memory of a forward pass, roughly, per token: some hidden states and feed-forward activations."""
    wide = intermediate if isinstance(intermediate, int) else 4 * hidden
    return (8 * hidden + 4 * wide) * width + 8 * hidden


def require_cut(settings: TeacherSettings, size: TeacherSize, model_type: str) -> None:
    """Raise `UserError` unless transformers can cut the teacher over `settings.parallel` processes."""
    wanted = settings.parallel
    if not size.has_plan:
        raise UserError(
            f"teacher.parallel {wanted}: transformers has no tensor-parallel plan for {model_type}; run without "
            f"torchrun, and one process spreads its layers over {wanted} GPUs"
        )
    if not size.divides(wanted):
        fitting = [str(n) for n in size.cuts[1:]]
        heads = " and ".join(f"{count} {words}" for words, count in size.heads)
        remedy = f"set it to {' or '.join(fitting)}" if fitting else "run without torchrun, which spreads whole layers"
        raise UserError(f"teacher.parallel {wanted}: does not divide the teacher's {heads}; {remedy}")


def require_memory(settings: TeacherSettings, size: TeacherSize, free: int, *, tensor: bool, on_gpu: bool) -> None:
    """Raise `UserError`, with the number of devices that would do, where weights do not fit `free` bytes a device."""
    beside, count = ROOM_ON_GPU if on_gpu else 0, settings.parallel
    each = size.bytes_each(count) if tensor else size.bytes / count
    if each + beside <= free:
        return
    what = "GPU" if on_gpu else "process"
    needed = f"its weights take {byte_size(size.bytes)} in {settings.dtype}"
    cut = f", {byte_size(each)} on each of {count}" if count > 1 else ""
    remedy = "take a machine with more memory"
    if on_gpu and (fewest := size.fewest(free, beside)):
        launch = f"torchrun --nproc-per-node {fewest[0]} …" if fewest[1] == "tensors" else "without torchrun"
        remedy = f"set teacher.parallel to {fewest[0]} ({launch})"
    raise UserError(f"teacher.model {settings.model}: {needed}{cut}, and a {what} has {byte_size(free)} free; {remedy}")


def free_bytes(device: torch.device, processes: int) -> int:
    """Free bytes of a GPU, or a process' share of those of the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")) // processes
