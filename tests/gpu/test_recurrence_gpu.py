"""The fused recurrence and a compiled, recorded student on a GPU against their twins."""

import pytest
import torch
from torch import Tensor

from delta_common.installed import has_triton
from student.model.recorded import record_passes
from student.model.transplant.body import body_tensors
from student.model.transplant.student import TransplantStudent, build_transplant
from tests.helpers.recurrence_cases import Case, worst_error
from tests.helpers.transplants import SHAPES, VOCAB, frozen_of, small_config, small_teacher, starts_at

pytestmark = pytest.mark.skipif(not (torch.cuda.is_available() and has_triton()), reason="needs a CUDA device")

SMOLLM2 = (4, 9, 3, 512, 256, 64)
QWEN = (2, 12, 2, 512, 512, 128)
DRAWS = 16
"""Texts, each with a gradient that comes from above, over which errors are added up."""


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("sizes", [SMOLLM2, (2, 9, 3, 500, 256, 64), QWEN, (2, 2, 1, 70, 64, 64)])
def test_kernels_are_as_near_as_their_products(sizes: tuple[int, ...], documents: bool, memory: bool) -> None:
    case = {"documents": documents, "memory": memory}
    assert worst_error(Case(*sizes, torch.bfloat16, **case), "cuda") < 2e-2
    assert worst_error(Case(*sizes[:4], 64, 64, torch.float32, **case), "cuda") < 2e-6


@pytest.mark.parametrize("name", SHAPES)
def test_a_compiled_and_recorded_student_is_as_near_as_one_in_plain_torch(name: str) -> None:
    exact = _student(name, torch.float64)
    plain = _student(name, torch.bfloat16)
    fast = _student(name, torch.bfloat16)
    fast.kernels, fast.trains_compiled = "auto", True
    record_passes(fast, accumulates=True)
    plain_errors, fast_errors = torch.zeros(2, len(list(exact.parameters())) + 1, dtype=torch.float64)
    for draw in range(DRAWS):
        wanted = _states_and_gradients(exact, draw)
        plain_errors += _squared_errors(_states_and_gradients(plain, draw), wanted)
        fast_errors += _squared_errors(_states_and_gradients(fast, draw), wanted)
    # One draw says little: of a bias the gradient is a sum of few numbers, in which rounding cancels or adds up.
    assert (fast_errors < 1.2**2 * plain_errors).all()


def _student(name: str, dtype: torch.dtype) -> TransplantStudent:
    teacher = small_teacher("llama", head_dim=64)
    config, body = small_config("llama", head_dim=64), body_tensors(teacher)
    student = build_transplant(config, frozen_of(teacher), body, SHAPES[name], seed=1).to("cuda", dtype)
    student.kernels, student.trains_compiled = "naive", False
    return student


def _states_and_gradients(student: TransplantStudent, draw: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(draw)
    tokens, starts = torch.randint(0, VOCAB, (2, 128), generator=random), starts_at(128, [30, 31], [0, 64])
    student.zero_grad()
    hidden_states = student(tokens.cuda(), starts.cuda())
    upstream = torch.randn(hidden_states.shape, generator=random).to(hidden_states)
    (hidden_states * upstream).sum().backward()
    return [hidden_states.detach().double(), *(p.grad.double() for p in student.parameters())]


def _squared_errors(found: list[Tensor], wanted: list[Tensor]) -> Tensor:
    return torch.stack([(a - x).square().sum() for a, x in zip(found, wanted, strict=True)]).cpu()
