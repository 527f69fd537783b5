"""Students that begin as their teacher: equal to it with a full window; documents, states, memory."""

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from student.model.state import forget_rows, select_rows, state_bytes
from student.model.transplant.body import body_tensors
from student.model.transplant.student import TransplantStudent, _call, build_transplant
from tests.helpers.transplants import (
    FAMILIES,
    OF_ONE_SIZE,
    SHAPES,
    SMALL_HYBRID,
    SMALL_TRANSPLANT,
    VOCAB,
    frozen_of,
    moved_mixers,
    small_config,
    small_teacher,
    small_tokens,
    small_transplant,
    starts_at,
)

STARTS = [([0], [5]), ([1, 2, 3, 20], [4, 6, 39]), (list(range(40)), []), ([38, 39], [0, 7, 8])]


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_window_as_wide_as_the_row_logits_are_the_teachers(family: str, sinks: int) -> None:
    teacher, tokens = small_teacher(family), small_tokens()
    shape = replace(SMALL_HYBRID, window=40, sinks=sinks)
    student = build_transplant(small_config(family), frozen_of(teacher), body_tensors(teacher), shape, seed=0)
    moved_mixers(student)
    with torch.no_grad():
        found, expected = student.logits(student(tokens)), teacher(tokens).logits
    assert (found - expected).abs().max() < 1e-4
    assert expected.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_with_no_share_for_the_recurrence_only_window_and_sinks_count(family: str) -> None:
    """Before the window is full, logits are the teacher's whatever the recurrence would say; after it not."""
    teacher, tokens = small_teacher(family), small_tokens()
    student = build_transplant(small_config(family), frozen_of(teacher), body_tensors(teacher), SMALL_HYBRID, seed=0)
    moved_mixers(student)
    found = student.logits(student(tokens)) - teacher(tokens).logits
    seen = SMALL_HYBRID.window + SMALL_HYBRID.sinks
    assert found[:, :seen].abs().max() < 1e-4
    assert found[:, seen:].abs().max() > 1e-2


@pytest.mark.parametrize("rows", STARTS)
@pytest.mark.parametrize("name", SHAPES)
def test_documents_are_as_if_apart(name: str, rows: tuple[list[int], list[int]]) -> None:
    student, tokens, starts = small_transplant(name), small_tokens(), starts_at(40, *rows)
    parts = []
    for row in range(2):
        bounds = [0, *(starts[row, 1:].nonzero().flatten() + 1).tolist(), 40]
        parts.append(torch.cat([student(tokens[row : row + 1, slice(*span)]) for span in pairwise(bounds)], dim=1))
    found, expected = student(tokens, starts), torch.cat(parts)
    # Norms of transformers round to float32.
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    weights = list(student.parameters())
    ours, theirs = (torch.autograd.grad((y * upstream).sum(), weights) for y in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-4 * max(1.0, float(other.detach().abs().max())))


def test_documents_apart_differ_from_one_document() -> None:
    for name in SHAPES:
        student, tokens = small_transplant(name), small_tokens()
        whole, apart = student(tokens), student(tokens, starts_at(40, [20], [20]))
        assert torch.allclose(whole[:, :20], apart[:, :20], rtol=0, atol=1e-6)
        assert (whole[:, 20:] - apart[:, 20:]).abs().max() > 1e-2


@pytest.mark.parametrize("kernels", ["auto", "naive"])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_steps_give_what_the_row_gives(name: str, kernels: str) -> None:
    student, tokens = small_transplant(name, kernels=kernels), small_tokens(length=24)
    state: Any = {}
    steps = []
    for token in tokens.split(1, dim=1):
        hidden_states, state = student.step(token, state)
        steps.append(hidden_states)
    assert torch.allclose(torch.cat(steps, dim=1), small_transplant(name)(tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [None, *STARTS])
@pytest.mark.parametrize("split", [1, 3, 8, 21, 39])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_row_in_two_parts_is_the_row(name: str, split: int, rows: tuple[list[int], list[int]] | None) -> None:
    student, tokens = small_transplant(name), small_tokens()
    starts = None if rows is None else starts_at(40, *rows)
    spans = slice(split), slice(split, None)
    state, parts = None, []
    for span in spans:
        hidden_states, state = student.prefill(tokens[:, span], state, None if starts is None else starts[:, span])
        parts.append(hidden_states)
    assert torch.allclose(torch.cat(parts, dim=1), student(tokens, starts), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [None, STARTS[1]])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_both_kernels_go_on_from_each_others_state(name: str, rows: tuple[list[int], list[int]] | None) -> None:
    tokens, starts = small_tokens(), None if rows is None else starts_at(40, *rows)
    both = [small_transplant(name, kernels="auto"), small_transplant(name, kernels="naive")]
    state, parts = None, []
    for place, (begin, end) in enumerate(pairwise([0, 7, 8, 30, 31, 40])):
        span = slice(begin, end)
        seen = None if starts is None else starts[:, span]
        hidden_states, state = both[place % 2].prefill(tokens[:, span], state, seen)
        parts.append(hidden_states)
    for student in both:
        whole, after = student.prefill(tokens, None, starts)
        assert torch.allclose(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)
        following = small_tokens(length=5)
        found, expected = (student.prefill(following, one)[0] for one in (state, after))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_prompt_longer_than_what_runs_at_once_is_the_row() -> None:
    for name in SHAPES:
        student, tokens = small_transplant(name), small_tokens(1, 700)
        assert torch.allclose(student.prefill(tokens)[0], student(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", OF_ONE_SIZE)
@torch.no_grad()
def test_the_state_has_one_size(name: str) -> None:
    student, sizes = small_transplant(name), []
    for length in (1, 2, 9, 300):
        _, state = student.prefill(small_tokens(2, length))
        sizes.append((state_bytes(state), _shapes(state)))
    assert all(size == sizes[0] for size in sizes)
    assert sizes[0][0] > 0


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_the_state_keeps_nothing_else_in_memory(name: str) -> None:
    student = small_transplant(name)
    _, state = student.prefill(small_tokens(2, 300))
    for _ in range(2):
        held = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in _tensors(state)}
        assert sum(held.values()) <= 2 * state_bytes(state)
        _, state = student.step(small_tokens(2, 1), state)


def _tensors(state: Any) -> list[Tensor]:
    return [x for parts in state.values() for part in parts.values() for x in part]


def _shapes(state: Any) -> dict[str, list[tuple[int, ...]]]:
    return {f"{b}.{n}": [tuple(x.shape) for x in part] for b, parts in state.items() for n, part in parts.items()}


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_rows_of_a_state_can_be_chosen_and_forgotten(name: str) -> None:
    student, tokens = small_transplant(name), small_tokens(3, 40)
    _, state = student.prefill(tokens[:, :30])
    chosen = torch.tensor([2, 0, 2])
    found, _ = student.prefill(tokens[chosen, 30:], select_rows(state, chosen))
    assert torch.allclose(found, student(tokens[chosen])[:, 30:], rtol=0, atol=1e-5)
    found, _ = student.prefill(tokens[:, 30:], forget_rows(state, torch.tensor([False, True, False])))
    assert torch.allclose(found[1], student(tokens[1:2, 30:])[0], rtol=0, atol=1e-5)
    assert torch.allclose(found[2], student(tokens)[2, 30:], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_forgotten_row_is_empty_however_closed_its_input_gates_are() -> None:
    """Zeros have m = 0; weights of exp(-200) beside that would be none."""
    student, tokens = small_transplant(replace(SMALL_TRANSPLANT, lags=0)), small_tokens()
    for layer in student.layers:
        layer.self_attn.input_gate.bias.fill_(-200)
    _, state = student.prefill(tokens[:, :30])
    found, _ = student.prefill(tokens[:, 30:], forget_rows(state, torch.tensor([True, True])))
    assert torch.allclose(found, student(tokens[:, 30:]), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_state_passed_in_is_not_changed() -> None:
    for name in SHAPES:
        student, tokens = small_transplant(name), small_tokens()
        _, state = student.prefill(tokens[:, :20])
        kept = copy.deepcopy(state)
        first, _ = student.prefill(tokens[:, 20:], state)
        assert torch.equal(first, student.prefill(tokens[:, 20:], kept)[0])


@torch.no_grad()
def test_sinks_stay_in_sight_of_texts_longer_than_the_teachers() -> None:
    student = small_transplant("hybrid")
    hidden_states, _ = student.prefill(small_tokens(1, 300))
    assert student.rotary.longest == 128
    assert torch.isfinite(hidden_states).all()
    stretched = small_transplant("hybrid")
    stretched.rotary.longest = 10**6
    difference = (stretched.prefill(small_tokens(1, 300))[0] - hidden_states).abs().amax(-1)[0]
    assert difference[:128].max() == 0
    assert difference[140:].max() > 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    tokens, starts, found = small_tokens(), starts_at(40, [7], [30]), []
    for recompute in (False, True):
        student = small_transplant(name, recompute=recompute)
        loss = student(tokens, starts).square().sum()
        found.append(torch.autograd.grad(loss, list(student.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_trained_is_the_body_and_the_new_weights() -> None:
    teacher = small_teacher("qwen3")
    student = small_transplant("transplant", "qwen3")
    new = student.new_names()
    assert set(student.state_dict()) - new == set(body_tensors(teacher))
    assert {name.split("self_attn.")[1].split(".")[0] for name in new} == {
        "input_gate",
        "forget_gate",
        "q_features",
        "k_features",
        "convolution",
        "lags",
    }
    counts = student.parameter_counts()
    assert counts.trainable == sum(x.numel() for x in student.state_dict().values())
    assert counts.total == counts.trainable + 2 * student.embedding.numel()
    assert student.vocab_size == VOCAB
    assert student.head.weight.shape == (VOCAB, 32)


def test_its_weights_can_be_kept_with_the_frozen_ones_and_loaded() -> None:
    teacher = small_teacher()
    student = small_transplant("hybrid", keep_frozen=True)
    loaded = build_transplant(
        small_config("llama"), frozen_of(teacher), None, SMALL_HYBRID, seed=3, keep_frozen=True
    ).double()
    loaded.load_state_dict(student.state_dict())
    tokens = small_tokens()
    assert torch.equal(loaded(tokens), student(tokens))


def test_counting_parameters_allocates_nothing() -> None:
    with torch.device("meta"):
        frozen = frozen_of(small_teacher())
        student = build_transplant(small_config("llama"), frozen, None, SMALL_TRANSPLANT, seed=0)
    assert {x.device.type for x in student.parameters()} == {"meta"}
    assert student.parameter_counts() == small_transplant().parameter_counts()


def test_seeds_decide_the_new_weights_and_global_randomness_is_kept() -> None:
    teacher = small_teacher()
    before = torch.random.get_rng_state()

    def built(seed: int) -> TransplantStudent:
        return build_transplant(
            small_config("llama"), frozen_of(teacher), body_tensors(teacher), SMALL_TRANSPLANT, seed=seed
        )

    one, again, other = (built(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    name = "layers.0.self_attn.q_features"
    assert not torch.equal(one[name], other[name])


def test_the_dtype_of_the_student_is_that_of_its_hidden_states() -> None:
    for name in SHAPES:
        student = small_transplant(name).bfloat16()
        hidden_states, state = student.prefill(small_tokens())
        assert hidden_states.dtype == torch.bfloat16
        assert all(x.dtype == torch.float32 for x in state["layer_1"]["memory"])
        found: Tensor = student(small_tokens())
        assert (found - small_transplant(name)(small_tokens())).abs().mean() < 0.2


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_compiler_takes_a_layer_in_one_piece(name: str, family: str) -> None:
    """As on a GPU, but what was traced is run as it is. A piece less than the whole would be slow in silence."""
    torch._dynamo.reset()
    student = small_transplant(name, family).float()
    x, starts = student._embedded(small_tokens()), starts_at(40, [4, 5, 17], [0, 29])
    mixing = student._mixing(x, starts, None, want_state=False, compiled=True)
    traced = torch.compile(_call, backend="eager", fullgraph=True, dynamic=False)
    plain = student._mixing(x, starts, None, want_state=False)
    layer = student.layers[0]
    assert torch.allclose(traced(layer, x, mixing), layer(x, mixing=plain), atol=1e-5)
