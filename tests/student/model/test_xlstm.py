"""The student's shape, size, seeding and frozen matrices, and that its recurrent form equals the parallel one."""

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch

from student.model.frozen import FrozenWeights
from student.model.shape import StudentSettings, TeacherDims, resolve_shape
from student.model.xlstm import XLSTMStudent, build_student
from tests.helpers.small_students import PADDED, VOCAB, WIDTH, small_shape, small_student, tokens_of

QWEN = TeacherDims(hidden_size=1536, num_layers=28, num_heads=12)


def frozen_weights(*, tied: bool = True) -> FrozenWeights:
    random = torch.Generator().manual_seed(5)
    embedding, head = torch.randn(2, PADDED, WIDTH, generator=random)
    return FrozenWeights(embedding, None if tied else head, None, VOCAB)


def initial_student(*, seed: int = 1, tied: bool = True, kernels: Literal["auto", "naive"] = "auto") -> XLSTMStudent:
    return build_student(small_shape(), frozen_weights(tied=tied), context_length=16, seed=seed, kernels=kernels)


@pytest.mark.parametrize(
    ("preset", "trainable", "total"),
    [("paper", 84_175_968, 550_923_360), ("heuristic", 198_644_904, 665_392_296)],
)
@pytest.mark.parametrize("tied", [True, False])
def test_presets_have_the_papers_parameter_counts(preset: str, trainable: int, total: int, tied: bool) -> None:
    with torch.device("meta"):
        matrices = torch.empty(2, 151_936, 1536)
        frozen = FrozenWeights(matrices[0], None if tied else matrices[1], None, 151_665)
        shape = resolve_shape(StudentSettings(preset=preset), QWEN)  # type: ignore[arg-type]
        student = build_student(shape, frozen, context_length=512, seed=0)
    counts = student.parameter_counts()
    assert (counts.trainable, counts.total) == (trainable, total)


def test_the_seed_alone_decides_the_parameters() -> None:
    before = torch.random.get_rng_state()
    first, second, other = initial_student(), initial_student(), initial_student(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_stack_is_trained_and_stored(tied: bool) -> None:
    student = initial_student(tied=tied)
    assert all(name.startswith("stack.") for name in student.state_dict())
    student(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert student.embedding.grad is None
    assert (student.head.weight.data_ptr() == student.embedding.data_ptr()) == tied


def test_logits_cover_real_tokens_only() -> None:
    student = initial_student(tied=False)
    hidden_states = student(torch.tensor([[1, 2, 3]]))
    assert hidden_states.shape == (1, 3, WIDTH)
    expected = hidden_states @ frozen_weights(tied=False).lm_head[:VOCAB].T  # type: ignore[index]
    assert torch.allclose(student.logits(hidden_states), expected, atol=1e-5)


def test_hidden_states_do_not_see_later_tokens() -> None:
    student = initial_student()
    tokens = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    changed = torch.cat([tokens[:, :7], (tokens[:, 7:] + 1) % VOCAB], dim=1)
    with torch.no_grad():
        assert torch.allclose(student(tokens)[:, :7], student(changed)[:, :7], atol=1e-6)


def test_only_naive_kernels_refuse_more_tokens_than_built_for() -> None:
    """Beyond it, the causal mask of xlstm's cell would be too small."""
    tokens = torch.zeros(1, 17, dtype=torch.long)
    with pytest.raises(ValueError, match="17 tokens in a row, built for 16"):
        initial_student(kernels="naive")(tokens)
    assert initial_student()(tokens).shape == (1, 17, WIDTH)


def _trained_a_little(student: XLSTMStudent) -> XLSTMStudent:
    """Away from the initial state, whose recurrent weights are zero."""
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random).to(parameter)
    return student


@pytest.mark.parametrize("kernels", ["auto", "naive"])
def test_recurrent_form_equals_the_parallel_one(kernels: Literal["auto", "naive"]) -> None:
    student = _trained_a_little(initial_student(kernels=kernels)).double()
    tokens = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    state, steps = None, []
    with torch.no_grad():
        parallel = student(tokens)
        for position in range(16):
            hidden_states, state = student.step(tokens[:, position : position + 1], state)
            steps.append(hidden_states)
    # xlstm adds its 1e-6 to differently scaled denominators in the two forms, so equality ends there.
    allowed = 1e-5 if kernels == "naive" else 1e-9
    assert torch.allclose(torch.cat(steps, dim=1), parallel, rtol=0, atol=allowed)


@pytest.mark.parametrize("kernels", ["auto", "naive"])
def test_a_prompt_at_once_and_steps_equal_the_parallel_form(
    kernels: Literal["auto", "naive"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student.model.xlstm.PREFILL_LENGTH", 3)
    student = _trained_a_little(initial_student(kernels=kernels)).double()
    tokens = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, state = student.prefill(tokens[:, :7])
        second, state = student.step(tokens[:, 7:8], state)
        third, _ = student.prefill(tokens[:, 8:], state)
        found, expected = torch.cat([first, second, third], dim=1), student(tokens)
    allowed = 1e-5 if kernels == "naive" else 1e-9
    assert torch.allclose(found, expected, rtol=0, atol=allowed)


def test_kernels_share_weights_and_agree() -> None:
    """The package's modules are the naive twin: the same parameters, the same values, the same gradients."""
    student, twin = _trained_a_little(initial_student()).double(), initial_student(seed=2, kernels="naive").double()
    twin.load_state_dict(student.state_dict())
    student.load_state_dict(twin.state_dict())
    tokens = torch.randint(0, VOCAB, (2, 16), generator=torch.Generator().manual_seed(0))
    starts = torch.zeros(2, 16, dtype=torch.bool)
    starts[0, [0, 3, 4]] = starts[1, 15] = True
    for documents in (None, starts):
        found, expected = student(tokens, documents), twin(tokens, documents)
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)
        upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
        gradients = [
            torch.autograd.grad(y, list(s.parameters()), upstream) for y, s in ((found, student), (expected, twin))
        ]
        for ours, theirs in zip(*gradients, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-8 * max(1.0, float(theirs.abs().max())))


def test_importing_the_student_compiles_nothing(tmp_path: Path) -> None:
    code = "import student.model.xlstm, sys; sys.exit('ninja' in sys.modules)"
    environment = {
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "built"),
        "PATH": "",
        "PYTHONPATH": ":".join(sys.path),
    }
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment, timeout=120)
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize("chunk", [1, 4, 6, 512])
def test_chunks_with_document_starts_equal_the_whole(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with starts inside of chunks, at their edges, and in the first place after a state."""
    monkeypatch.setattr("student.model.xlstm.PREFILL_LENGTH", chunk)
    student, tokens = small_student().double(), tokens_of(3, 14)
    starts = torch.zeros(3, 14, dtype=torch.bool)
    starts[0, [0, 4, 5]] = starts[1, [6, 8]] = starts[2, 12] = True
    whole = student(tokens, starts)
    first, state = student.prefill(tokens[:, :6], None, starts[:, :6])
    second, _ = student.prefill(tokens[:, 6:], state, starts[:, 6:])
    parts = torch.cat([first, second], dim=1)
    assert torch.allclose(parts, whole, rtol=0, atol=1e-9)
    upstream = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1)).double()
    gradients = [torch.autograd.grad(y, list(student.parameters()), upstream) for y in (parts, whole)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-8 * max(1.0, float(theirs.abs().max())))


def test_naive_kernels_forget_at_document_starts_too() -> None:
    fast, naive = small_student().double(), small_student(kernels="naive").double()
    tokens, starts = tokens_of(2, 9), torch.zeros(2, 9, dtype=torch.bool)
    starts[0, [0, 5]] = starts[1, 3] = True
    with torch.no_grad():
        found, expected = fast.prefill(tokens, None, starts)[0], naive.prefill(tokens, None, starts)[0]
    # xlstm adds its 1e-6 to differently scaled denominators in the two forms.
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_a_16_bit_student_keeps_its_memory_in_float32() -> None:
    """Rounded at every token it would drift: forgetting 0.1 % of it is less than bfloat16 can express."""
    student, tokens = small_student(), tokens_of(1, 600)
    with torch.no_grad():
        exact = student.logits(student(tokens)).log_softmax(-1)[0, 64:]
        student.bfloat16()
        parallel = student.logits(student(tokens)).float().log_softmax(-1)[0, 64:]
        hidden, state = student.prefill(tokens[:, :64])
        steps = []
        for position in range(64, 600):
            hidden, state = student.step(tokens[:, position : position + 1], state)
            steps.append(student.logits(hidden)[0].float().log_softmax(-1))
    assert {part.dtype for part in state["block_1"]["mlstm_state"]} == {torch.float32}
    errors = [float((exact.exp() * (exact - found)).sum(-1)[-200:].mean()) for found in (parallel, torch.cat(steps))]
    assert errors[1] < 3 * errors[0]


def test_a_long_text_step_by_step_equals_the_parallel_form() -> None:
    student, tokens = small_student().double(), tokens_of(1, 1500)
    with torch.no_grad():
        parallel = student(tokens)
        first, state = student.prefill(tokens[:, :1100])
        hidden = [first]
        for position in range(1100, 1500):
            one, state = student.step(tokens[:, position : position + 1], state)
            hidden.append(one)
    assert torch.allclose(torch.cat(hidden, dim=1), parallel, rtol=0, atol=1e-9)
