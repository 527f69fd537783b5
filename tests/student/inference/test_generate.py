"""What generation rests on: padding that leaves no trace, chunks that equal the whole, the nucleus, the text stream."""

import time
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_common.errors import UserError
from student.inference.generate import Sampling, continue_prompts, generate_tokens, nucleus, read_prompts
from student.model.state import state_bytes
from student.model.student import Student
from tests.helpers.small_students import ROUNDING, VOCAB, small_student, tokens_of
from tests.helpers.tokenizers_for_tests import byte_tokenizer

LENGTHS = (7, 1, 12, 4)
TOKENIZER = byte_tokenizer()
KINDS = pytest.mark.parametrize("kind", ROUNDING)


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    return [tokens_of(1, length, seed)[0].tolist() for seed, length in enumerate(lengths)]


@KINDS
@pytest.mark.parametrize("kernels", ["auto", "naive"])
@pytest.mark.parametrize("chunk", [3, 5, 512])
def test_prompts_of_different_lengths_leave_what_each_leaves_alone(
    kernels: Literal["auto", "naive"], chunk: int, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("student.model.transplant.student.PREFILL_LENGTH", chunk)
    monkeypatch.setattr("student.model.xlstm.PREFILL_LENGTH", chunk)
    monkeypatch.setattr("student.inference.generate.PREFILL_LENGTH", chunk)
    student, prompts = small_student(kind, kernels=kernels).double(), prompts_of(LENGTHS)
    following = tokens_of(len(prompts), 1, seed=99)
    with torch.no_grad():
        together, state = read_prompts(student, prompts)
        stepped, _ = student.step(following, state)
        for row, prompt in enumerate(prompts):
            alone, own = read_prompts(student, [prompt])
            assert torch.allclose(together[row], alone[0], rtol=0, atol=ROUNDING[kind])
            own_step, _ = student.step(following[row : row + 1], own)
            assert torch.allclose(stepped[row], own_step[0], rtol=0, atol=ROUNDING[kind])


@KINDS
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_generates_what_its_prompts_generate_alone(temperature: float, kind: str) -> None:
    student, prompts = small_student(kind).double(), prompts_of(LENGTHS)
    together: list[list[int]] = [[] for _ in prompts]
    stop = generate_tokens(student, prompts[0], max_new_tokens=20, temperature=temperature, seed=5)[3]
    for step in continue_prompts(
        student, prompts, max_new_tokens=20, sampling=Sampling(temperature, seed=5), stop_token=stop
    ):
        for row, token in step.items():
            together[row].append(token)
    alone = [
        generate_tokens(student, p, max_new_tokens=20, temperature=temperature, seed=5 + n, stop_token=stop)
        for n, p in enumerate(prompts)
    ]
    assert together == alone
    assert len({len(text) for text in together}) > 1


def _naive_nucleus(probabilities: list[float], top_p: float) -> set[int]:
    kept: set[int] = set()
    mass = 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if mass >= top_p:
            break
        kept.add(token)
        mass += probabilities[token]
    return kept


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=12), top_p=st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_the_nucleus_is_the_fewest_likeliest_that_reach_top_p(weights: list[int], top_p: float) -> None:
    probabilities = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    found = nucleus(probabilities, top_p)
    kept = set(found.nonzero().flatten().tolist())
    expected = _naive_nucleus(probabilities.tolist(), top_p)
    # Sums in another order may differ in the last bit where they meet top_p exactly.
    assert kept == expected or abs(float(found.sum()) - top_p) < 1e-9
    assert torch.equal(found[found > 0], probabilities[found > 0])


def test_drawn_tokens_stay_in_the_nucleus() -> None:
    student = small_student()
    with torch.no_grad():
        probabilities = torch.softmax(student.logits(student(torch.tensor([[7]])))[0, 0].double(), dim=-1)
    inside = set(nucleus(probabilities, 0.5).nonzero().flatten().tolist())
    assert 1 < len(inside) < VOCAB
    drawn = [
        next(continue_prompts(student, [[7]], max_new_tokens=1, sampling=Sampling(1.0, 0.5, seed)))[0]
        for seed in range(60)
    ]
    assert set(drawn) <= inside
    assert len(set(drawn)) > 1


def _minima(student: Student, states: list[Any], rounds: int) -> list[float]:
    """Least time of a step from each state, in turns."""
    times: list[list[float]] = [[] for _ in states]
    token = torch.tensor([[3]])
    with torch.no_grad():
        for _ in range(rounds):
            for place, state in enumerate(states):
                begin = time.perf_counter()
                _, states[place] = student.step(token, state)
                times[place].append(time.perf_counter() - begin)
    return [min(of_one) for of_one in times]


@pytest.mark.parametrize("kind", [kind for kind in ROUNDING if not kind.startswith("attending")])
def test_memory_and_the_time_of_a_token_do_not_grow_to_16k_tokens(kind: str) -> None:
    student = small_student(kind)
    states, sizes = [], []
    for length in (16, 16_384):
        last, state = read_prompts(student, [tokens_of(1, length)[0].tolist()])
        assert bool(last.isfinite().all())
        states.append(state)
        sizes.append(state_bytes(state))
    assert sizes[0] == sizes[1]
    short, long = _minima(student, states, rounds=60)
    assert long < 2 * short


def _greedy_by_forward(student: Student, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(student.logits(student(torch.tensor([tokens])))[0, -1].argmax()))
    return tokens[len(prompt) :]


@KINDS
def test_greedy_generation_takes_the_likeliest_token_every_time(kind: str) -> None:
    student = small_student(kind)
    expected = _greedy_by_forward(student, [3, 1, 4], 10)
    assert generate_tokens(student, [3, 1, 4], max_new_tokens=10) == expected
    first_seen = expected.index(expected[4])
    stopped = generate_tokens(student, [3, 1, 4], max_new_tokens=10, stop_token=expected[4])
    assert stopped == expected[:first_seen]


def test_drawn_tokens_depend_on_the_seed_and_follow_the_distribution() -> None:
    student = small_student()
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
