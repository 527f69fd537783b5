"""The sLSTM recurrence against xlstm's own loop: values, gradients, document starts, states, types."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.nn.functional import logsigmoid

from student.model.kernels import slstm_torch
from student.model.kernels.slstm import slstm_sequence
from tests.helpers.slstm_cases import Sequence, worst_error

SEQUENCES = st.builds(
    Sequence,
    batch=st.integers(1, 4),
    length=st.one_of(st.just(1), st.integers(2, 12), st.integers(slstm_torch.CHUNK - 1, 2 * slstm_torch.CHUNK + 2)),
    heads=st.integers(1, 3),
    head_dim=st.integers(2, 7),
    from_state=st.booleans(),
    starts=st.sampled_from([None, 0.0, 0.1, 0.6, 1.0]),
    final_counts=st.booleans(),
    seed=st.integers(0, 10_000),
)


@given(SEQUENCES)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_are_those_of_the_loop(sequence: Sequence) -> None:
    assert worst_error(sequence, "torch") < 1e-10


@given(SEQUENCES)
@settings(max_examples=30, deadline=None)
def test_float32_stays_close_to_the_loop_in_float64(sequence: Sequence) -> None:
    assert worst_error(sequence.in_type(torch.float32), "torch") < 1e-5


def test_where_the_input_gate_ties_with_the_forget_gate_the_gradient_is_the_derivative() -> None:
    """The output is smooth there; the loop's max and min take halves that do not add up to it.

    Over a million entries in float32, one such tie is to be expected.
    """
    sequence = Sequence(batch=1, length=1, heads=1, head_dim=2, from_state=True)
    cell, state = sequence.cell(), sequence.state()
    assert state is not None
    torch.nn.init.zeros_(cell._recurrent_kernel_)
    torch.nn.init.zeros_(cell._bias_)
    inputs = sequence.random(1, 1, 8, seed=1)
    inputs[..., :2] = state[3] + logsigmoid(inputs[..., 2:4])

    def output(kernels: str, inputs: Tensor) -> Tensor:
        return slstm_sequence(cell, inputs, state, kernels=kernels)[0]

    assert gradcheck(lambda inputs: output("torch", inputs), inputs.requires_grad_())
    with pytest.raises(GradcheckError):
        gradcheck(lambda inputs: output("naive", inputs), inputs)


def test_16_bit_inputs_are_computed_in_float32() -> None:
    sequence = Sequence(batch=2, length=20, heads=2, head_dim=4, starts=0.2, dtype=torch.bfloat16)
    inputs, cell = sequence.random(2, 20, 32, seed=1), sequence.cell()
    output, final = slstm_sequence(cell, inputs, document_start=sequence.document_start())
    expected = slstm_sequence(cell, inputs.float(), document_start=sequence.document_start())
    assert torch.equal(output, expected[0].bfloat16())
    assert torch.equal(final, expected[1].bfloat16())


def test_the_naive_form_is_the_cell_document_by_document() -> None:
    sequence = Sequence(batch=2, length=7, heads=2, head_dim=3)
    inputs, cell = sequence.random(2, 7, 24, seed=1), sequence.cell()
    expected, expected_final = cell(inputs)
    output, final = slstm_sequence(cell, inputs, kernels="naive")
    assert torch.equal(output, expected)
    assert torch.equal(final, expected_final)
    starts = torch.zeros(2, 7, dtype=torch.bool)
    starts[1, 4] = True
    output, final = slstm_sequence(cell, inputs, None, starts, "naive")
    torch.testing.assert_close(output[0], expected[0])
    torch.testing.assert_close(output[1, :, :4], expected[1, :, :4])
    alone, alone_final = cell(inputs[1:, 4:])
    torch.testing.assert_close(output[1:, :, 4:], alone)
    torch.testing.assert_close(final[:, 1:], alone_final)


@pytest.mark.parametrize("kernels", ["naive", "torch"])
def test_what_came_before_a_document_start_has_no_influence(kernels: str) -> None:
    sequence = Sequence(batch=1, length=6, heads=1, head_dim=4, from_state=True)
    inputs, starts = sequence.random(1, 6, 16, seed=1).requires_grad_(), torch.zeros(1, 6, dtype=torch.bool)
    starts[0, 3] = True
    output, _ = slstm_sequence(sequence.cell(), inputs, sequence.state(), starts, kernels)
    (gradient,) = torch.autograd.grad(output[:, :, 3:].sum(), inputs)
    assert not gradient[:, :3].any()
    assert gradient[:, 3:].any()


def test_two_halves_are_the_whole() -> None:
    sequence = Sequence(batch=2, length=9, heads=2, head_dim=3, starts=0.3)
    inputs, cell, starts = sequence.random(2, 9, 24, seed=1), sequence.cell(), sequence.document_start()
    assert starts is not None
    output, final = slstm_sequence(cell, inputs, None, starts, "torch")
    first, state = slstm_sequence(cell, inputs[:, :4], None, starts[:, :4], "torch")
    second, last = slstm_sequence(cell, inputs[:, 4:], state, starts[:, 4:], "torch")
    torch.testing.assert_close(torch.cat([first, second], dim=2), output)
    torch.testing.assert_close(last, final)


def test_a_zero_state_has_the_gradient_of_the_loop() -> None:
    sequence = Sequence(batch=2, length=5, heads=2, head_dim=3)
    inputs, cell = sequence.random(2, 5, 24, seed=1), sequence.cell()
    gradients = []
    for kernels in ("naive", "torch"):
        state = torch.zeros(4, 2, 6, dtype=torch.float64, requires_grad=True)
        output, final = slstm_sequence(cell, inputs, state, kernels=kernels)
        gradients += torch.autograd.grad((output**2).sum() + (final**2).sum(), state)
    assert gradients[0].any()
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-12)


def test_empty_and_used_states_mix_in_a_batch() -> None:
    """Each row is as if it were alone, in its state too, where the loop would choose one stabiliser for all."""
    sequence = Sequence(batch=3, length=4, heads=2, head_dim=3, from_state=True)
    inputs, cell, state = sequence.random(3, 4, 24, seed=1), sequence.cell(), sequence.state()
    assert state is not None
    state[:, 1] = 0
    output, final = slstm_sequence(cell, inputs, state, kernels="torch")
    torch.testing.assert_close(output, cell(inputs, state=state)[0])
    for row in range(3):
        alone = cell(inputs[row : row + 1], state=state[:, row : row + 1])
        torch.testing.assert_close(output[row : row + 1], alone[0])
        torch.testing.assert_close(final[:, row : row + 1], alone[1])


@pytest.mark.parametrize("size", [50.0, 500.0])
def test_large_gates_stay_finite(size: float) -> None:
    sequence = Sequence(batch=2, length=20, heads=1, head_dim=4, starts=0.2, dtype=torch.float32)
    inputs, cell = (size * sequence.random(2, 20, 16, seed=1)).requires_grad_(), sequence.cell()
    output, final = slstm_sequence(cell, inputs, None, sequence.document_start(), "torch")
    gradients = torch.autograd.grad(output.sum() + final.sum(), [inputs, *cell.parameters()])
    assert all(bool(value.isfinite().all()) for value in (output, final, *gradients))
    expected, _ = slstm_sequence(cell, inputs, None, sequence.document_start(), "naive")
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_that_come_in_are_left_alone(batch: int) -> None:
    sequence = Sequence(batch=batch, length=5, heads=1, head_dim=3)
    output, final = slstm_sequence(sequence.cell(), sequence.random(batch, 5, 12, seed=1), kernels="torch")
    cotangents: tuple[Tensor, Tensor] = torch.randn_like(output), torch.randn_like(final)
    before = [cotangent.clone() for cotangent in cotangents]
    torch.autograd.backward((output, final), cotangents)
    assert all(torch.equal(a, b) for a, b in zip(before, cotangents, strict=True))


def test_what_cannot_be_computed_is_refused() -> None:
    sequence = Sequence(batch=1, length=2, heads=1, head_dim=3)
    cell, inputs = sequence.cell(), sequence.random(1, 2, 12, seed=1)
    with pytest.raises(ValueError, match="'fast'; it must be one of auto, naive, torch, triton"):
        slstm_sequence(cell, inputs, kernels="fast")
    with pytest.raises(ValueError, match=r"no float64.*use 'auto'"):
        slstm_sequence(cell, inputs, kernels="triton")
    wide = Sequence(batch=1, length=1, heads=1, head_dim=129, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"at most 128.*heads of 129"):
        slstm_sequence(wide.cell(), wide.random(1, 1, 516, seed=1), kernels="triton")
    cell.config.function = "lstm"
    with pytest.raises(ValueError, match="'lstm'; this recurrence is that of 'slstm'"):
        slstm_sequence(cell, inputs)
