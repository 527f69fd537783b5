"""The loss of a causal LM of transformers, computed inside its forward pass.

There DDP and FSDP know of it, and the head's weight is whole. While a loss is asked for, the LM head gives the loss in
place of logits; what the model makes of its logits must be nothing, which is checked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, cast
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from cached_distillation.batch import CachedBatch
from cached_distillation.head import linear_head
from cached_distillation.loss import distillation_loss, not_compiled
from delta_common.errors import UserError
from student.data.batch import GlobalCounts
from student.loss.distillation import DistillationLoss
from student.loss.frobenius import FrobeniusTerm
from student.model.causal_lm.head import BEHIND_THE_HEAD
from student.model.frozen import FrozenHead

MARK = 1000.0
"""Given beside the loss where logits are expected: a scale or a cap of logits would change it."""

_plain: WeakSet[nn.Module] = WeakSet()
"""Heads whose logits their model is known to give as they are."""


LossAtHead = Callable[[Tensor, nn.Module], DistillationLoss]
"""(hidden states (B, T, d), LM head) → loss."""


class _HasHead(Protocol):
    def get_output_embeddings(self) -> nn.Module: ...


def causal_lm_loss(
    model: nn.Module,
    batch: CachedBatch,
    *,
    alpha: float,
    temperature: float,
    beta: float = 0.0,
    counts: GlobalCounts | None = None,
    teacher_head: FrozenHead | None = None,
    frobenius: FrobeniusTerm | None = None,
) -> DistillationLoss:
    """`distillation_loss` of a causal LM of transformers, bare or wrapped by peft, DDP, FSDP, Accelerate or compile.

    Raises `UserError` as that does, and for a model that changes its logits behind the head or balances experts.
    """

    def ask(hidden_states: Tensor, lm_head: nn.Module) -> DistillationLoss:
        return distillation_loss(
            hidden_states,
            lm_head,
            batch,
            alpha=alpha,
            temperature=temperature,
            beta=beta,
            counts=counts,
            teacher_head=teacher_head,
            frobenius=frobenius,
        )

    return at_head(model, batch, ask)


def at_head(model: nn.Module, batch: CachedBatch, ask: LossAtHead) -> DistillationLoss:
    """What `ask` finds from the hidden states (B, T, d) and the head, as it is in the model's forward pass."""
    head = linear_head(output_embeddings(model))
    with _standing_in(head, ask) as stood_in:
        outputs = model(**batch.model_inputs, use_cache=False)
    if getattr(outputs, "aux_loss", None) is not None:
        raise UserError("the student balances its experts by a loss of its own; set its output_router_logits to False")
    total, mark = cast(Tensor, outputs.logits).flatten()
    if head not in _plain:
        if mark.item() != MARK:
            raise UserError(BEHIND_THE_HEAD)
        _plain.add(head)
    found = stood_in.found
    assert found is not None
    # FSDP may round what a model gives; the value is as it was, and the gradient goes through the model.
    return DistillationLoss(total + (found.total - total.detach()), found.sums)


def output_embeddings(model: nn.Module) -> nn.Module:
    """The LM head of a model, however wrapped; raises `UserError` where there is none."""
    for module in model.modules():
        if hasattr(module, "get_output_embeddings"):
            head = cast(_HasHead, module).get_output_embeddings()
            if isinstance(head, nn.Module):
                return head
    raise UserError(f"{type(model).__name__} has no LM head (get_output_embeddings); call distillation_loss with yours")


class _LossInHead:
    """Called with the hidden states in place of a head; one object for each head, which compiled code knows again."""

    def __init__(self) -> None:
        self.ask: LossAtHead | None = None
        self.head: nn.Linear | None = None
        self.found: DistillationLoss | None = None

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """The loss and the mark, (1, 1, 2)."""
        return self._answer(hidden_states)

    @not_compiled
    def _answer(self, hidden_states: Tensor) -> Tensor:
        assert self.ask is not None
        assert self.head is not None
        found = self.ask(hidden_states, self.head)
        self.found = DistillationLoss(found.total.detach(), found.sums)
        return torch.stack([found.total, found.total.new_tensor(MARK)]).view(1, 1, 2).clone()


_in_heads: WeakKeyDictionary[nn.Module, _LossInHead] = WeakKeyDictionary()


@contextmanager
def _standing_in(head: nn.Linear, ask: LossAtHead) -> Iterator[_LossInHead]:
    """While it lasts, the head gives the loss."""
    stands_in = _in_heads.setdefault(head, _LossInHead())
    before = vars(head).get("forward")  # such as a hook's of Accelerate
    stands_in.ask, stands_in.head = ask, head
    head.forward = stands_in  # type: ignore[method-assign, assignment]
    try:
        yield stands_in
    finally:
        stands_in.ask = stands_in.head = None
        del head.forward
        if before is not None:
            head.forward = before  # type: ignore[method-assign]
