"""Held-out sums, row by row."""

import pytest
import torch
from torch.nn import functional

from cached_distillation.batch import collate
from cached_distillation.causal_lm import causal_lm_loss
from cached_distillation.dataset import CacheDataset
from cached_distillation.trainer.evaluate import row_sums
from tests.helpers.small_llama import small_llama


def test_sums_of_each_row(dataset: CacheDataset) -> None:
    model, batch = small_llama(), collate([dataset[number] for number in range(3)])
    found = row_sums(model, batch)
    logits = model(**batch.model_inputs).logits
    losses = functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
    assert torch.allclose(found[:, 0].float(), losses.sum(1).detach(), rtol=1e-5)
    assert found[:, 2].tolist() == batch.loss_mask.sum(1).tolist()
    together = causal_lm_loss(model, batch, alpha=0.5, temperature=1.0).sums
    assert float(found[:, 1].sum()) == pytest.approx(float(together.kl), rel=1e-5)
