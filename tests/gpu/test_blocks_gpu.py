"""What surrounds the recurrences of an xLSTM student, compiled, and its recorded pass, on a GPU."""

import pytest
import torch
from torch import Tensor, nn

from delta_common.installed import has_triton
from student.model.frozen import FrozenWeights
from student.model.recorded import record_passes
from student.model.shape import StudentShape
from student.model.xlstm import build_student
from tests.helpers.documents import starts_of

pytestmark = pytest.mark.skipif(not (torch.cuda.is_available() and has_triton()), reason="needs a CUDA device")

SHAPE = StudentShape(
    hidden_size=256,
    blocks=4,
    slstm_at=(0, 2),
    heads=4,
    conv_kernel=4,
    qkv_block_size=32,
    mlstm_proj_factor=2.0,
    slstm_ffn_factor=1.7,
)


def _gradients(student: nn.Module) -> dict[str, Tensor]:
    """By name; a gate's weight and bias are one, for the bias alone has next to none: its parts cancel."""
    found = {name: p.grad.double() for name, p in student.named_parameters()}
    for name in [name for name in found if name.endswith("gate.bias")]:
        weight = name.removesuffix("bias") + "weight"
        found[weight] = torch.cat([found[weight].flatten(), found.pop(name)])
    return found


def _frozen() -> FrozenWeights:
    return FrozenWeights(torch.randn(300, 256, generator=torch.Generator().manual_seed(5)), None, None, 300)


def _accumulators(student: nn.Module) -> list[object]:
    """Where autograd adds up the gradients, held as ZeRO 1 and 2 hold them, from before the recording."""
    return [p.expand_as(p).grad_fn.next_functions[0][0] for p in student.parameters()]


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_a_compiled_and_recorded_student_is_as_near_as_one_in_plain_torch(documents: bool, held: bool) -> None:
    tokens = torch.randint(0, 300, (2, 200), generator=torch.Generator().manual_seed(0)).cuda()
    starts = starts_of(200, ([0, 63, 64, 130, 199], [20, 128])).cuda() if documents else None
    found = []
    for dtype, fast in ((torch.float64, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        student = build_student(SHAPE, _frozen(), context_length=200, seed=1).to("cuda", dtype)
        if fast:
            assert student.can_compile
            student.trains_compiled = True
            accumulators = _accumulators(student) if held else []
            record_passes(student, accumulates=True)
        for _ in range(2):  # the second replays what the first has recorded
            student.zero_grad()
            hidden_states = student(tokens, starts)
            upstream = torch.randn(hidden_states.shape, generator=torch.Generator().manual_seed(0)).to(hidden_states)
            (hidden_states * upstream).sum().backward()
        found.append({"hidden states": hidden_states.detach().double(), **_gradients(student)})
    assert len(accumulators) == held * len(list(student.parameters()))
    exact, plain, fast_one = found
    for name, x in exact.items():
        assert (fast_one[name] - x).norm() < 1.5 * (plain[name] - x).norm() + 0.01 * x.norm(), name
