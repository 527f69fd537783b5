"""A teacher's body: its decoder layers and last norm, without embedding and head, as named tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from delta_common.errors import UserError

NOT_BODY = ("embed_tokens.",)


def body_tensors(model: Any) -> dict[str, Tensor]:
    """The body of a causal language model of transformers, by the names that its base model gives.

    For Llama and its like `layers.0.self_attn.q_proj.weight` to `norm.weight`. Nothing is copied.
    """
    tensors = model.get_decoder().state_dict()
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_BODY)}


def put_body(module: nn.Module, tensors: Mapping[str, Tensor], new: set[str]) -> None:
    """Make the tensors the module's parameters, in float32; `new` are the names that no teacher has.

    Raises `UserError` naming a tensor that is missing, left over or of another shape.
    """
    wanted = {name: tensor for name, tensor in module.state_dict().items() if name not in new}
    for name in sorted(wanted.keys() ^ tensors.keys()):
        state = "missing from the body" if name in wanted else "not in the configured teacher"
        raise UserError(f"the teacher's body: {name} is {state}; name the teacher that the cache was built with")
    for name, tensor in wanted.items():
        if tensor.shape != tensors[name].shape:
            raise UserError(
                f"the teacher's body: {name} has shape {tuple(tensors[name].shape)}, its configuration says "
                f"{tuple(tensor.shape)}; name the teacher that the cache was built with"
            )
    # A copy: the caller's tensors are not trained.
    copied = {name: tensors[name].to(torch.float32, copy=True) for name in wanted}
    module.load_state_dict(copied, strict=False, assign=True)
