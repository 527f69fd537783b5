"""What generation rests on: padding that leaves no trace, chunks that equal the whole, the nucleus, the text stream."""

import time
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from student.inference.generate import Sampling, continue_prompts, generate_tokens, nucleus, read_prompts
from student.inference.hf import StudentState
from student.inference.text_stream import MOST_PENDING, UNFINISHED, TextStream
from student.model.state import forget_rows, select_rows, state_bytes
from student.model.xlstm import XLSTMStudent
from tests.helpers.small_students import VOCAB, small_model, small_student
from tests.helpers.tokenizers_for_tests import byte_tokenizer

LENGTHS = (7, 1, 12, 4)
TOKENIZER = byte_tokenizer()


def tokens_of(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    return [tokens_of(1, length, seed)[0].tolist() for seed, length in enumerate(lengths)]


@pytest.mark.parametrize("kernels", ["auto", "naive"])
@pytest.mark.parametrize("chunk", [3, 5, 512])
def test_prompts_of_different_lengths_leave_what_each_leaves_alone(
    kernels: Literal["auto", "naive"], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("student.model.xlstm.PREFILL_LENGTH", chunk)
    monkeypatch.setattr("student.inference.generate.PREFILL_LENGTH", chunk)
    student, prompts = small_student(kernels=kernels).double(), prompts_of(LENGTHS)
    following = tokens_of(len(prompts), 1, seed=99)
    with torch.no_grad():
        together, state = read_prompts(student, prompts)
        stepped, _ = student.step(following, state)
        for row, prompt in enumerate(prompts):
            alone, own = read_prompts(student, [prompt])
            assert torch.allclose(together[row], alone[0], rtol=0, atol=1e-9)
            own_step, _ = student.step(following[row : row + 1], own)
            assert torch.allclose(stepped[row], own_step[0], rtol=0, atol=1e-9)


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


def test_chosen_rows_of_a_state_go_on_as_they_would_have() -> None:
    student, tokens = small_student().double(), tokens_of(3, 8)
    rows = torch.tensor([2, 0, 2])
    with torch.no_grad():
        _, state = student.prefill(tokens[:, :7])
        chosen = select_rows(state, rows)
        expected, _ = student.step(tokens[:, 7:], state)
        found, _ = student.step(tokens[rows, 7:], chosen)
    assert torch.equal(found, expected[rows])


def test_forgotten_rows_are_empty_and_the_others_untouched() -> None:
    student = small_student()
    with torch.no_grad():
        _, state = student.prefill(tokens_of(2, 5))
    gone = forget_rows(state, torch.tensor([True, False]))
    for row, expected in ((0, None), (1, state)):
        kept = select_rows(gone, torch.tensor([row]))
        wanted = select_rows(expected, torch.tensor([row])) if expected else None
        for block, parts in kept.items():
            for name, part in parts.items():
                tensors = [part] if isinstance(part, Tensor) else part
                theirs = wanted and wanted[block][name]
                for place, tensor in enumerate(tensors):
                    if wanted is None:
                        assert not tensor.any()
                    else:
                        assert torch.equal(tensor, theirs if isinstance(theirs, Tensor) else theirs[place])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_generates_what_its_prompts_generate_alone(temperature: float) -> None:
    student, prompts = small_student().double(), prompts_of(LENGTHS)
    together: list[list[int]] = [[] for _ in prompts]
    likeliest_first = generate_tokens(student, prompts[0], max_new_tokens=20)
    stop = likeliest_first[3]
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


def _minima(student: XLSTMStudent, states: list[Any], rounds: int) -> list[float]:
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


def test_memory_and_the_time_of_a_token_do_not_grow_to_16k_tokens() -> None:
    student = small_student()
    states, sizes = [], []
    for length in (16, 16_384):
        last, state = read_prompts(student, [tokens_of(1, length)[0].tolist()])
        assert bool(last.isfinite().all())
        states.append(state)
        sizes.append(state_bytes(state))
    assert sizes[0] == sizes[1]
    short, long = _minima(student, states, rounds=60)
    assert long < 2 * short


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


@given(st.one_of(st.text(max_size=30).map(str.encode), st.binary(max_size=12)))
@settings(max_examples=200, deadline=None)
def test_text_in_pieces_is_the_text_at_once(data: bytes) -> None:
    tokenizer = TOKENIZER
    tokens = _tokens_of_bytes(tokenizer, data)
    assert UNFINISHED in tokenizer.decode(tokens) or tokenizer.decode(tokens).encode() == data
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in tokens] + [stream.finish()]
    # What is no character is cut somewhere, lest it pile up.
    if len(tokens) < MOST_PENDING or (_is_text(data) and UNFINISHED not in data.decode()):
        assert "".join(pieces) == tokenizer.decode(tokens)


def _tokens_of_bytes(tokenizer: Any, data: bytes) -> list[int]:
    """By the letters that GPT-2 writes bytes in: printable ones as they are, the others from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in data]
    return [tokenizer.convert_tokens_to_ids(letter) for letter in letters]


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_stream_keeps_few_tokens_back() -> None:
    """Bytes that never become a character must not pile up."""
    stream = TextStream(TOKENIZER)
    most = 0
    for _ in range(200):
        stream.add(_tokens_of_bytes(TOKENIZER, b"\xf0")[0])
        most = max(most, len(stream._pending))
    assert most < MOST_PENDING


def test_left_padding_leaves_no_trace_in_logits() -> None:
    model = small_model().double()
    rows = [tokens_of(1, length, seed=length)[0] for length in (5, 9, 1)]
    tokens, mask = torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 9, dtype=torch.long)
    for row, own in enumerate(rows):
        tokens[row, -len(own) :], mask[row, -len(own) :] = own, 1
    with torch.no_grad():
        for use_cache in (True, False):
            padded = model(tokens, attention_mask=mask, use_cache=use_cache).logits
            for row, own in enumerate(rows):
                alone = model(own[None], use_cache=use_cache).logits[0]
                assert torch.allclose(padded[row, -len(own) :], alone, rtol=0, atol=1e-9)


def test_a_continued_cache_equals_the_whole_text() -> None:
    model, tokens = small_model().double(), tokens_of(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :3] = 0
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask).logits
        first = model(tokens[:, :5], attention_mask=mask[:, :5])
        assert isinstance(first.past_key_values, StudentState)
        second = model(tokens[:, 5:11], attention_mask=mask[:, :11], past_key_values=first.past_key_values)
        third = model(tokens[:, 11:], attention_mask=mask, past_key_values=second.past_key_values, logits_to_keep=1)
    assert third.past_key_values.get_seq_length() == 12
    found = torch.cat([first.logits, second.logits, third.logits], dim=1)
    seen = mask.bool()
    assert torch.allclose(found[seen], whole[seen], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("mask", "words"),
    [([[1, 1, 0, 1]], "between its tokens; pad on the left"), ([[1, 1, 1, 0]], "on the right, and cannot go on")],
)
def test_masks_that_a_recurrence_cannot_follow_are_refused(mask: list[list[int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_model()(tokens_of(1, 4), attention_mask=torch.tensor(mask), use_cache=True)


def test_right_padding_leaves_the_positions_before_it_alone() -> None:
    model, tokens = small_model().double(), tokens_of(1, 6)
    with torch.no_grad():
        found = model(tokens, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]]), use_cache=False).logits
        assert torch.allclose(found[:, :4], model(tokens[:, :4]).logits, rtol=0, atol=1e-9)


def test_loss_and_its_gradients_are_those_of_the_next_tokens() -> None:
    model, tokens = small_model().double().train(), tokens_of(2, 8)
    labels = tokens.clone()
    labels[0, :3] = -100

    def expected_loss() -> Tensor:
        logits = model.student.logits(model.student(tokens))[:, :-1]
        return cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    def gradients(loss: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        value = loss()
        return value, list(torch.autograd.grad(value, list(model.parameters())))

    found, ours = gradients(lambda: model(tokens, labels=labels).loss)
    expected, theirs = gradients(expected_loss)
    # transformers computes the loss in float32.
    assert torch.allclose(found.double(), expected, rtol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))
