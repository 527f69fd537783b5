"""Layers that find facts are told by what is lost without them."""

import pytest
import torch

from experiments.attending import Text, keep_attention, read, search, table
from student.model.transplant.body import body_tensors
from student.model.transplant.student import TransplantStudent, build_transplant
from tests.helpers.transplants import (
    LAYERS,
    SMALL_HYBRID,
    frozen_of,
    moved_mixers,
    small_config,
    small_teacher,
    small_tokens,
)

TEXTS = [Text(row[:-3], row[-3:]) for row in small_tokens(3, 40).tolist()]


@pytest.fixture
def student() -> TransplantStudent:
    teacher = small_teacher()
    return moved_mixers(
        build_transplant(small_config("llama"), frozen_of(teacher), body_tensors(teacher), SMALL_HYBRID, seed=0)
    )


@torch.no_grad()
def test_where_all_layers_attend_the_teacher_reads(student: TransplantStudent) -> None:
    teacher, tokens = small_teacher(), small_tokens()
    as_begun = student(tokens)
    keep_attention(student, range(LAYERS))
    assert torch.allclose(student.logits(student(tokens)), teacher(tokens).logits, atol=1e-4)
    log_probabilities = teacher(small_tokens(3, 40)).logits[:, -4:-1].log_softmax(-1)
    expected = log_probabilities.gather(2, small_tokens(3, 40)[:, -3:, None]).sum((1, 2)).mean()
    assert read(student, TEXTS).log_probability == pytest.approx(float(expected), abs=1e-3)
    keep_attention(student, ())
    assert torch.equal(student(tokens), as_begun)


def test_the_layers_that_cost_the_most_are_kept(student: TransplantStudent) -> None:
    found = search(student, TEXTS, most=2)
    assert len(found.without) == LAYERS
    dearest = sorted(range(LAYERS), key=lambda layer: found.without[layer])[:2]
    [(layers, alone)] = found.alone.items()
    assert layers == tuple(sorted(dearest))
    keep_attention(student, layers)
    assert alone == read(student, TEXTS)
    assert found.all != found.none
    assert f"| {list(layers)} | {alone.log_probability:.2f} |" in table(found)
