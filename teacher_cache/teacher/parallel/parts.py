"""A whole teacher that rounds as one cut over several processes does: what such a cut changes in its numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from teacher_cache.teacher.parallel.fit import style_of


@contextmanager
def summed_in_parts(model: PreTrainedModel, parts: int) -> Iterator[None]:
    """Products whose inputs a tensor-parallel cut divides are sums of so many parts, each rounded, as processes add.

    Experts, which transformers adds together inside, stay as they are.
    """

    def add(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given, weight = inputs[0].to(module.weight.device), module.weight
        pieces = zip(given.tensor_split(parts, -1), weight.tensor_split(parts, 1), strict=True)
        total = sum((nn.functional.linear(x, w) for x, w in pieces), start=given.new_zeros(()))
        return (total if module.bias is None else total + module.bias).to(output.device)

    plan = dict(getattr(model, "tp_plan", None) or {})
    divided = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and "rowwise" in style_of(name, plan)]
    hooks = [module.register_forward_hook(add) for module in divided]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
