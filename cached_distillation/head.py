"""An LM head of any student, checked against the cache."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from delta_common.errors import UserError
from student.model.causal_lm.head import require_vocabulary
from student.model.frozen import FrozenHead, head_over


def linear_head(lm_head: nn.Module) -> nn.Linear:
    """The linear layer that an LM head is, or that an adapter library has put in its place.

    Raises `UserError` for one with a low-rank adapter, whose logits are no product with `weight`.
    """
    saved = getattr(lm_head, "modules_to_save", None)  # peft: a trained copy in place of the original
    if isinstance(saved, nn.ModuleDict):
        lm_head = saved[lm_head.active_adapters[0]]  # type: ignore[index]
    if not isinstance(lm_head, nn.Linear):
        raise UserError(
            f"lm_head is a {type(lm_head).__name__}, not a linear layer: the loss in chunks would leave its adapter "
            "out; take lm_head out of target_modules, and put it into modules_to_save if it should learn"
        )
    return lm_head


def real_head(lm_head: nn.Module, vocab_size: int, device_type: str) -> FrozenHead:
    """A linear layer as the head over the cache's tokens, in the type that autocast multiplies in.

    Raises `UserError` for a head of another vocabulary, and for one that is quantised or sharded over processes.
    """
    linear = linear_head(lm_head)
    weight: Tensor = linear.weight
    bias: Tensor | None = linear.bias
    if isinstance(weight, DTensor):
        raise UserError(
            "lm_head's weight is sharded over processes: compute the loss inside the model's forward pass, "
            "as causal_lm_loss does"
        )
    if weight.dim() != 2 or not weight.is_floating_point():
        raise UserError("lm_head is quantised; leave it in floating point (llm_int8_skip_modules for bitsandbytes)")
    require_vocabulary(len(weight), vocab_size)
    head = head_over(weight, bias, vocab_size)
    if torch.is_autocast_enabled(device_type):
        head = head.to(dtype=torch.get_autocast_dtype(device_type))
    return head
