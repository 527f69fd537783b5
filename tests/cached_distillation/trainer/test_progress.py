"""Means of what the loss was made of."""

import pytest
import torch

from cached_distillation.batch import collate
from cached_distillation.dataset import CacheDataset
from cached_distillation.trainer.progress import LossLog
from student.loss.distillation import LossSums
from student.loss.schedule import Coefficients


def test_means_are_over_tokens_of_all_micro_batches(dataset: CacheDataset) -> None:
    log = LossLog()
    assert log.means(lambda sums: sums) == {}
    tokens = 0
    for number in (0, 1):
        batch = collate([dataset[number]])
        tokens += int(batch.loss_mask.sum())
        sums = LossSums(torch.tensor(3.0 + number), torch.tensor(1.0), torch.tensor(0.5))
        log.add(sums, batch, Coefficients(0.6, 1.0 + number, 0.1))
    found = log.means(lambda sums: sums * 2)  # two processes of the same
    assert found == {
        "cross_entropy": pytest.approx(7 / tokens),
        "kl": pytest.approx(2 / tokens),
        "frobenius": pytest.approx(0.5),
        "beta": 0.1,
        "alpha": 0.6,
        "temperature": 2.0,
    }
    assert log.means(lambda sums: sums) == {}
