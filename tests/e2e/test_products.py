"""Matrix products of a training step have rows of a multiple of 8 elements, without which a GPU has no fast ones.

An odd vocabulary went unseen for long: the stand-ins that benchmarks ran had a round one.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from student.data.batch import GlobalCounts
from student.loss.distillation import distillation_loss
from student.loss.frobenius import FrobeniusTerm, StateMap
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenWeights, head_over
from student.model.shape import StudentShape
from student.model.transplant.options import TRANSPLANT
from student.model.transplant.student import build_transplant
from student.model.xlstm import build_student
from tests.helpers.batches import batch_of
from tests.helpers.loss_cases import make_case
from tests.helpers.transplants import small_config

MULTIPLE = 8
LEAST = 32
"""Narrower matrices are those of gates, a few numbers per head, which take next to no time."""
VOCAB, PADDED, WIDTH = 301, 304, 64
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


class OddProducts(TorchDispatchMode):
    """Counts products, and keeps those with an operand or a result whose rows are no multiple of 8 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.odd = 0, list[str]()

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS:
            self.count += 1
            matrices = [x for x in (*args, *(kwargs or {}).values(), result) if isinstance(x, Tensor) and x.dim() > 1]
            odd = [(tuple(x.shape), x.stride()) for x in matrices if _is_odd(x)]
            if odd:
                self.odd.append(f"{func}: {odd}")
        return result


def _is_odd(matrix: Tensor) -> bool:
    return min(matrix.shape[-2:]) >= LEAST and max(matrix.stride()[-2:]) % MULTIPLE != 0


def _students() -> dict[str, Any]:
    """The hybrid is left out: on a GPU its window is FlexAttention, here products over windows of any width."""
    frozen = FrozenWeights(torch.randn(PADDED, WIDTH), None, None, VOCAB)
    shape = StudentShape(
        hidden_size=WIDTH,
        blocks=2,
        slstm_at=(0,),
        heads=4,
        conv_kernel=4,
        qkv_block_size=16,
        mlstm_proj_factor=2.0,
        slstm_ffn_factor=1.7,
    )
    config = small_config("llama", hidden_size=WIDTH, head_dim=16, intermediate_size=64, vocab_size=PADDED)
    return {
        "xlstm": lambda: build_student(shape, frozen, context_length=64, seed=0),
        "transplant": lambda: build_transplant(config, frozen, None, TRANSPLANT, seed=0),
    }


@pytest.mark.parametrize("kind", ["sampled", "exact"])
@pytest.mark.parametrize("student", ["xlstm", "transplant"])
def test_no_product_of_a_step_has_odd_rows(student: str, kind: Any) -> None:
    trained = _students()[student]().bfloat16()
    case = make_case(kind, vocab=VOCAB, width=WIDTH, rows=2, length=64, valid=1.0)
    batch = batch_of(case.labels, case.mask, case.targets, case.hidden_mean)
    term = FrobeniusTerm("sequence", torch.ones(WIDTH), StateMap(WIDTH).bfloat16())
    with OddProducts() as products:
        hidden_states = trained(case.labels)
        loss = distillation_loss(
            hidden_states, trained.head, batch, Coefficients(0.5, 1.4, 0.2), GlobalCounts(128, 2), frobenius=term
        )
        loss.total.backward()
    assert products.count > 20
    assert products.odd == []


def test_a_head_cut_to_its_real_rows_would_be_found() -> None:
    weight, states = torch.randn(PADDED, WIDTH), torch.randn(64, WIDTH)
    with OddProducts() as products:
        head_over(weight, None, VOCAB).logits(states)
        assert products.odd == []
        states @ weight[:VOCAB].T
    assert len(products.odd) == 1
