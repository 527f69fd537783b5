"""The student's shape, size, seeding and frozen matrices, and that its recurrent form equals the parallel one."""

import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from delta_common.errors import UserError
from student.inference.generate import generate_tokens
from student.model.frozen import FrozenWeights, read_frozen_weights
from student.model.shape import StudentSettings, StudentShape, TeacherDims, resolve_shape
from student.model.xlstm import XLSTMStudent, build_student
from student.settings import TrainSettings

QWEN = TeacherDims(hidden_size=1536, num_layers=28, num_heads=12)
WIDTH, VOCAB, PADDED = 32, 40, 48


def small_shape(**values: Any) -> StudentShape:
    settings = StudentSettings(**{"blocks": 3, "heads": 4, "qkv_block_size": 8, **values})
    return resolve_shape(settings, TeacherDims(WIDTH, 4, 4))


def frozen_weights(*, tied: bool = True) -> FrozenWeights:
    random = torch.Generator().manual_seed(5)
    embedding, head = torch.randn(2, PADDED, WIDTH, generator=random)
    return FrozenWeights(embedding, None if tied else head, None, VOCAB)


def small_student(*, seed: int = 1, tied: bool = True, kernels: Literal["auto", "naive"] = "auto") -> XLSTMStudent:
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


def test_presets_resolve_to_the_papers_table() -> None:
    paper = resolve_shape(StudentSettings(), QWEN)
    assert (paper.blocks, paper.slstm_at, paper.heads) == (6, (0, 2, 4), 16)
    heuristic = resolve_shape(StudentSettings(preset="heuristic"), QWEN)
    assert (heuristic.blocks, heuristic.slstm_at, heuristic.heads) == (14, tuple(range(0, 13, 2)), 12)
    smollm = resolve_shape(StudentSettings(preset="heuristic"), TeacherDims(576, 30, 9))
    assert (smollm.blocks, smollm.heads, smollm.inner_size) == (15, 12, 1152)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"heads": 5}, "--model.heads 5 .* heads that do: 1, 2, 4, 8, 16$"),
        ({"heads": 32}, "--model.heads 32 .* heads of 2 or more"),
        ({"qkv_block_size": 7}, "--model.qkv_block_size 7 .* sizes that do: 1, 2, 4, 8, 16, 32, 64$"),
        ({"blocks": 2, "slstm_at": (0, 2)}, r"--model.slstm_at \[0, 2\]: the student's blocks are 0 to 1"),
    ],
)
def test_a_shape_that_does_not_fit_names_the_option_and_what_fits(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        small_shape(**values)


def test_a_preset_that_does_not_fit_the_teacher_says_so() -> None:
    with pytest.raises(UserError, match=r"--model\.heads 16 does not divide the teacher's width 900"):
        resolve_shape(StudentSettings(), TeacherDims(900, 12, 10))


def test_the_seed_alone_decides_the_parameters() -> None:
    before = torch.random.get_rng_state()
    first, second, other = small_student(), small_student(), small_student(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_stack_is_trained_and_stored(tied: bool) -> None:
    student = small_student(tied=tied)
    assert all(name.startswith("stack.") for name in student.state_dict())
    student(torch.zeros(1, 4, dtype=torch.long)).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert student.embedding.grad is None
    assert (student.head.weight.data_ptr() == student.embedding.data_ptr()) == tied


def test_logits_cover_real_tokens_only() -> None:
    student = small_student(tied=False)
    hidden_states = student(torch.tensor([[1, 2, 3]]))
    assert hidden_states.shape == (1, 3, WIDTH)
    expected = hidden_states @ frozen_weights(tied=False).lm_head[:VOCAB].T  # type: ignore[index]
    assert torch.allclose(student.logits(hidden_states), expected, atol=1e-5)


def test_hidden_states_do_not_see_later_tokens() -> None:
    student = small_student()
    tokens = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(0))
    changed = torch.cat([tokens[:, :7], (tokens[:, 7:] + 1) % VOCAB], dim=1)
    with torch.no_grad():
        assert torch.allclose(student(tokens)[:, :7], student(changed)[:, :7], atol=1e-6)


def test_only_naive_kernels_refuse_more_tokens_than_built_for() -> None:
    """Beyond it, the causal mask of xlstm's cell would be too small."""
    tokens = torch.zeros(1, 17, dtype=torch.long)
    with pytest.raises(ValueError, match="17 tokens in a row, built for 16"):
        small_student(kernels="naive")(tokens)
    assert small_student()(tokens).shape == (1, 17, WIDTH)


def _trained_a_little(student: XLSTMStudent) -> XLSTMStudent:
    """Away from the initial state, whose recurrent weights are zero."""
    random = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=random).to(parameter)
    return student


@pytest.mark.parametrize("kernels", ["auto", "naive"])
def test_recurrent_form_equals_the_parallel_one(kernels: Literal["auto", "naive"]) -> None:
    student = _trained_a_little(small_student(kernels=kernels)).double()
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
    student = _trained_a_little(small_student(kernels=kernels)).double()
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
    student, twin = _trained_a_little(small_student()).double(), small_student(seed=2, kernels="naive").double()
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


def test_kernels_do_not_count_as_what_decides_a_run() -> None:
    naive = TrainSettings(model=StudentSettings(kernels="naive"))
    assert naive.deciding(world_size=1) == TrainSettings().deciding(world_size=1)
    assert naive.model_dump()["model"]["kernels"] == "naive"


def _greedy_by_forward(student: XLSTMStudent, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(student.logits(student(torch.tensor([tokens])))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_generation_takes_the_likeliest_token_every_time() -> None:
    student = _trained_a_little(small_student(tied=False))
    expected = _greedy_by_forward(student, [3, 1, 4], 10)
    assert generate_tokens(student, [3, 1, 4], max_new_tokens=10) == expected
    first_seen = expected.index(expected[4])
    stopped = generate_tokens(student, [3, 1, 4], max_new_tokens=10, stop_token=expected[4])
    assert stopped == expected[:first_seen]


def test_drawn_tokens_depend_on_the_seed_and_follow_the_distribution() -> None:
    student = _trained_a_little(small_student(tied=False))
    draw = [generate_tokens(student, [7], max_new_tokens=40, temperature=1.5, seed=s) for s in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]
    cold = generate_tokens(student, [3, 1, 4], max_new_tokens=10, temperature=1e-4)
    assert cold == generate_tokens(student, [3, 1, 4], max_new_tokens=10)
    with torch.no_grad():
        expected = torch.softmax(student.logits(student(torch.tensor([[7]])))[0, 0] / 1.5, dim=-1)
    drawn = [generate_tokens(student, [7], max_new_tokens=1, temperature=1.5, seed=s)[0] for s in range(100)]
    likeliest = int(expected.argmax())
    deviation = float((expected[likeliest] * (1 - expected[likeliest]) / 100) ** 0.5)
    assert drawn.count(likeliest) / 100 == pytest.approx(float(expected[likeliest]), abs=4 * deviation)


@pytest.mark.parametrize(("prompt", "temperature"), [([], 1.0), ([1], -0.5)])
def test_generation_refuses_what_it_cannot_continue(prompt: list[int], temperature: float) -> None:
    with pytest.raises(UserError, match=r"prompt is empty|temperature -0\.5 is negative"):
        generate_tokens(small_student(), prompt, max_new_tokens=1, temperature=temperature)


def _read(path: Path) -> FrozenWeights:
    return read_frozen_weights(path, padded_vocab_size=PADDED, vocab_size=VOCAB, hidden_size=WIDTH)


def test_frozen_weights_are_read_in_float32(tmp_path: Path) -> None:
    embedding, head, bias = torch.randn(PADDED, WIDTH), torch.randn(PADDED, WIDTH), torch.randn(PADDED)
    save_file({"embedding.weight": embedding.bfloat16()}, tmp_path / "tied.safetensors")
    tied = _read(tmp_path / "tied.safetensors")
    assert torch.equal(tied.embedding, embedding.bfloat16().float())
    assert (tied.lm_head, tied.lm_head_bias) == (None, None)
    tensors = {"embedding.weight": embedding, "lm_head.weight": head, "lm_head.bias": bias}
    save_file(tensors, tmp_path / "all.safetensors")
    student = build_student(small_shape(), _read(tmp_path / "all.safetensors"), context_length=4, seed=0)
    assert torch.equal(student.head.weight, head[:VOCAB])
    assert student.head.bias is not None
    assert torch.equal(student.head.bias, bias[:VOCAB])
    counts = student.parameter_counts()
    assert counts.total - counts.trainable == 2 * PADDED * WIDTH + PADDED


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"embedding.weight": torch.zeros(PADDED, 8)}, r"embedding.weight has shape \(48, 8\)"),
        ({"lm_head.weight": torch.zeros(PADDED, WIDTH)}, "embedding.weight is missing"),
        ({"other": torch.zeros(1)}, "other has shape"),
    ],
)
def test_frozen_weights_that_do_not_fit_the_cache_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    save_file(tensors, tmp_path / "frozen.safetensors")
    with pytest.raises(UserError, match=words):
        _read(tmp_path / "frozen.safetensors")


def test_damaged_or_missing_frozen_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    for name in ("damaged", "missing"):
        with pytest.raises(UserError, match=f"{name}.safetensors: the teacher's frozen weights are not readable"):
            _read(tmp_path / f"{name}.safetensors")


def test_importing_the_student_compiles_nothing(tmp_path: Path) -> None:
    code = "import student.model.xlstm, sys; sys.exit('ninja' in sys.modules)"
    environment = {
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "built"),
        "PATH": "",
        "PYTHONPATH": ":".join(sys.path),
    }
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment, timeout=120)
    assert not (tmp_path / "built").exists()
