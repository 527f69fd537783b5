"""The fused recurrence and a compiled, recorded student on a GPU against their twins."""

import pytest
import torch

from delta_common.installed import has_triton
from tests.helpers.recurrence_cases import Case, worst_error
from tests.helpers.transplants import SHAPES, frozen_of, small_config, small_teacher, small_tokens, starts_at

pytestmark = pytest.mark.skipif(not (torch.cuda.is_available() and has_triton()), reason="needs a CUDA device")

SMOLLM2 = (4, 9, 3, 512, 256, 64)
QWEN = (2, 12, 2, 512, 512, 128)


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("sizes", [SMOLLM2, (2, 9, 3, 500, 256, 64), QWEN, (2, 2, 1, 70, 64, 64)])
def test_kernels_are_as_near_as_their_products(sizes: tuple[int, ...], documents: bool, memory: bool) -> None:
    case = {"documents": documents, "memory": memory}
    assert worst_error(Case(*sizes, torch.bfloat16, **case), "cuda") < 2e-2
    assert worst_error(Case(*sizes[:4], 64, 64, torch.float32, **case), "cuda") < 2e-6


@pytest.mark.parametrize("name", SHAPES)
def test_a_compiled_and_recorded_student_is_as_near_as_one_in_plain_torch(name: str) -> None:
    from student.model.recorded import record_passes
    from student.model.transplant.body import body_tensors
    from student.model.transplant.student import build_transplant

    teacher = small_teacher("llama", head_dim=64)
    config, body = small_config("llama", head_dim=64), body_tensors(teacher)
    tokens, starts = small_tokens(2, 128).cuda(), starts_at(128, [30, 31], [0, 64]).cuda()
    found = []
    for dtype, fast in ((torch.float64, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        student = build_transplant(config, frozen_of(teacher), body, SHAPES[name], seed=1).to("cuda", dtype)
        student.kernels = "auto" if fast else "naive"
        student.trains_compiled = fast
        if fast:
            record_passes(student, accumulates=True)
        hidden_states = student(tokens, starts)
        upstream = torch.randn(hidden_states.shape, generator=torch.Generator().manual_seed(0)).to(hidden_states)
        (hidden_states * upstream).sum().backward()
        found.append([hidden_states.detach().double(), *(p.grad.double() for p in student.parameters())])
    exact, plain, fast_ones = found
    for a, b, x in zip(fast_ones, plain, exact, strict=True):
        assert (a - x).norm() < 1.5 * (b - x).norm() + 0.01 * x.norm()
