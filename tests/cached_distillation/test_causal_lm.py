"""The loss inside the forward pass of transformers' models."""

import warnings

import pytest
import torch
import torch._dynamo
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from cached_distillation.batch import CachedBatch, collate
from cached_distillation.causal_lm import causal_lm_loss, output_embeddings
from cached_distillation.dataset import CacheDataset
from cached_distillation.loss import distillation_loss
from delta_common.errors import UserError
from tests.cached_distillation.test_batch import in_documents
from tests.helpers.small_llama import COEFFICIENTS, assert_same_gradients, gradients_of, naive_step, small_llama

SETTINGS = {"alpha": COEFFICIENTS.alpha, "temperature": COEFFICIENTS.temperature}


@pytest.fixture
def batch(dataset: CacheDataset) -> CachedBatch:
    return collate([dataset[number] for number in range(4)])


@pytest.mark.parametrize("tied", [False, True])
def test_it_is_the_naive_twin(batch: CachedBatch, tied: bool) -> None:
    model = small_llama(72, tie_word_embeddings=tied)
    found = causal_lm_loss(model, batch, **SETTINGS)
    found.total.backward()
    expected, gradients = naive_step(model, model.lm_head, [batch])
    assert float(found.total.detach()) == pytest.approx(expected, rel=1e-6)
    assert_same_gradients(gradients_of(model), gradients)


def test_the_model_gives_logits_as_before(batch: CachedBatch) -> None:
    model = small_llama()
    before = model(**batch.model_inputs).logits
    causal_lm_loss(model, batch, **SETTINGS)
    with pytest.raises(UserError, match="outside the cached range"):
        causal_lm_loss(model, batch, alpha=0.5, temperature=9.0)
    assert torch.equal(model(**batch.model_inputs).logits, before)


def test_a_compiled_model_is_compiled_once(batch: CachedBatch) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_llama()
    compiled = torch.compile(model, backend="eager")
    with torch._dynamo.config.patch(error_on_recompile=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute")  # of torch's own, while it compiles
        found = [float(causal_lm_loss(compiled, batch, **SETTINGS).total.detach()) for _ in range(3)]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert found == [pytest.approx(float(causal_lm_loss(model, batch, **SETTINGS).total.detach()), rel=1e-6)] * 3


def test_documents_are_kept_apart(batch: CachedBatch) -> None:
    packed, model = in_documents(batch), small_llama()
    hidden = model.model(**packed.model_inputs, use_cache=False).last_hidden_state
    alone = model.model(input_ids=packed.input_ids[:, 5:], use_cache=False).last_hidden_state
    assert torch.allclose(hidden[:, 5:], alone, atol=1e-5)
    expected = distillation_loss(hidden, model.lm_head, packed, **SETTINGS).total
    assert float(causal_lm_loss(model, packed, **SETTINGS).total.detach()) == pytest.approx(float(expected.detach()))


def test_logits_changed_behind_the_head_are_refused(batch: CachedBatch) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=64, num_key_value_heads=1, head_dim=8, final_logit_softcapping=30.0, **sizes)
    with pytest.raises(UserError, match="scales or caps its logits behind lm_head"):
        causal_lm_loss(Gemma2ForCausalLM(config), batch, **SETTINGS)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no LM head"):
        output_embeddings(nn.Linear(2, 2))
