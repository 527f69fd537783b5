"""Parameters that transformers has cut over several processes, made whole again."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel


def whole(tensor: Tensor) -> Tensor:
    """The tensor as it is without a cut; all processes of a group must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_one_by_one(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor by its name, in the order of names, so that no process holds more than one of them whole."""
    for name in sorted(tensors):
        yield name, whole(tensors[name])


def keep_ends_whole(model: PreTrainedModel) -> None:
    """Put the whole token embedding and the whole LM head into each process, as they are in an uncut model.

    The head then gives whole rows of logits for any positions, so each process takes the targets of its own positions
    and no logits travel. It costs each process V × d values for each of the two, once where they are tied.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    for module in (head, embedding):
        _uncut(module)
    if tied:
        embedding.weight = head.weight


def _uncut(module: nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(parameter, DTensor):
            with torch.no_grad():
                module.register_parameter(name, nn.Parameter(whole(parameter).contiguous(), requires_grad=False))
    # transformers sets its own forward on the module that gathers or sums what cut weights give.
    module.__dict__.pop("forward", None)
