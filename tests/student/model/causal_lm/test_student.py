"""Models of transformers as students: hidden states, documents, generation, casts, frozen matrices."""

import pytest
import torch
from torch import Tensor

from delta_common.errors import UserError
from student.inference.generate import continue_prompts
from student.model.causal_lm.probes import logit_transform
from student.model.causal_lm.student import CausalLMStudent, build_causal_lm, configured
from student.model.frozen import FrozenWeights
from student.model.state import select_rows
from tests.helpers.families import family_model
from tests.helpers.small_llama import small_llama

REAL = 60
FAMILIES = ("Llama", "Gemma3Text", "GPT2", "Bloom", "Qwen2Moe", "Mistral", "Mamba", "Mamba2")
BENT = ("Gemma2", "Gemma3Text", "Cohere", "Granite")
"""They do something behind their heads."""
ROUNDING = 1e-4


def tokens_of(rows: int, length: int) -> Tensor:
    return torch.randint(REAL, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", sorted({*FAMILIES, *BENT}))
def test_its_head_over_its_states_gives_the_models_logits(family: str) -> None:
    tokens, model = tokens_of(2, 9), family_model(family)
    expected = model(tokens).logits[..., :280]
    student = CausalLMStudent(model, 280).eval()
    student.logit_transform = logit_transform(student, "it")
    assert (student.logit_transform is not None) == (family in BENT)
    assert torch.allclose(student.logits(student(tokens)), expected, atol=ROUNDING)
    assert torch.allclose(student.logits(student.prefill(tokens)[0]), expected, atol=ROUNDING)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_a_padded_batch_go_on_as_they_do_alone(family: str) -> None:
    student, tokens = CausalLMStudent(family_model(family), 280).eval(), tokens_of(2, 10)
    starts = torch.zeros_like(tokens, dtype=torch.bool)
    starts[0, 0] = starts[1, 3] = True
    read, state = student.prefill(tokens, None, starts)
    assert torch.allclose(read[1, 3:], student(tokens[1:, 3:])[0], atol=ROUNDING)
    state = select_rows(state, torch.tensor([1]))
    following, _ = student.step(tokens[:1, :1], state)
    alone = student(torch.cat([tokens[1:, 3:], tokens[:1, :1]], dim=1))
    assert torch.allclose(following[0, 0], alone[0, -1], atol=ROUNDING)


def test_a_recurrence_that_read_padding_before_is_one_line() -> None:
    student = CausalLMStudent(family_model("Mamba"), 280).eval()
    long, short = tokens_of(1, 600)[0].tolist(), [1, 2]
    with pytest.raises(UserError, match="a mamba cannot forget padding; give prompts one at a time"):
        list(continue_prompts(student, [long, short], max_new_tokens=1, sampling=_likeliest()))


def _likeliest() -> object:
    from student.inference.generate import Sampling

    return Sampling()


@torch.no_grad()
def test_prompts_of_any_lengths_are_continued_as_alone() -> None:
    student = CausalLMStudent(small_llama(), REAL).eval()
    prompts = [tokens_of(1, length)[0].tolist() for length in (3, 1, 60)]

    def written(some: list[list[int]]) -> list[list[int]]:
        steps = list(continue_prompts(student, some, max_new_tokens=5, sampling=_likeliest()))
        return [[step[row] for step in steps] for row in range(len(some))]

    assert written(prompts) == [written([prompt])[0] for prompt in prompts]


def test_without_dropout_two_passes_are_one() -> None:
    config = family_model("GPT2").config.to_dict()
    assert config["attn_pdrop"] == 0.1
    assert configured(config).attn_pdrop == configured(config).resid_pdrop == 0
    student = build_causal_lm(config, 280, seed=1).train()
    assert torch.equal(student(tokens_of(1, 8)), student(tokens_of(1, 8)))


def test_frequencies_stay_wide_when_the_student_is_cast() -> None:
    student = CausalLMStudent(small_llama(), REAL)
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    student.to(torch.bfloat16).bfloat16()
    assert student.embedding.dtype == torch.bfloat16
    assert before
    for name, buffer in student.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("tied", [True, False])
def test_frozen_matrices_are_buffers_and_one_where_they_are_tied(tied: bool) -> None:
    embedding, other = torch.randn(2, 64, 32)
    frozen = FrozenWeights(embedding, None if tied else other, None, REAL)
    config = small_llama(tie_word_embeddings=tied).config.to_dict()
    student = build_causal_lm(config, REAL, seed=1, frozen=frozen).to(torch.bfloat16)
    assert torch.equal(student.embedding, embedding.bfloat16())
    assert torch.equal(student.head.weight[:REAL], (embedding if tied else other)[:REAL].bfloat16())
    assert (student.head.weight.data_ptr() == student.embedding.data_ptr()) == tied
    names = [name for name, _ in student.named_parameters()]
    assert not any("embed" in name or "lm_head" in name for name in [*names, *student.state_dict()])
    counts = student.parameter_counts()
    assert counts.total - counts.trainable == 2 * 64 * 32
    student(tokens_of(1, 4)).sum().backward()


def test_the_seed_decides_random_weights_and_nothing_else() -> None:
    config = small_llama().config.to_dict()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = (dict(build_causal_lm(config, REAL, seed=seed).named_parameters()) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["model.lm_head.weight"], other["model.lm_head.weight"])


def test_weights_that_are_no_parameters_are_refused() -> None:
    model = small_llama()
    model.register_buffer("running", torch.zeros(1))
    with pytest.raises(UserError, match="llama: running is no parameter, and would not be kept"):
        CausalLMStudent(model, REAL)
