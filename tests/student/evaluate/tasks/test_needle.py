"""Texts of a length with a fact at a depth, which stands nowhere else."""

import pytest

from student.evaluate.tasks.needle import DEPTHS, LENGTHS, needle
from student.inference.tokenizer import encode_prompt
from tests.helpers.tokenizers_for_tests import byte_tokenizer

TOKENIZER = byte_tokenizer()
DOCUMENTS = [" ".join(f"Sentence number {n} of document {d} says little." for n in range(30)) for d in range(3)]


@pytest.mark.parametrize("name", LENGTHS)
def test_a_text_fills_its_length_and_no_more(name: str) -> None:
    task = needle(name, TOKENIZER, 5)
    for example in task.examples:
        tokens = len(encode_prompt(TOKENIZER, example.prompt)) + len(encode_prompt(TOKENIZER, example.answer))
        assert LENGTHS[name] - 160 < tokens <= LENGTHS[name]


def test_the_fact_lies_at_every_depth_and_wrong_numbers_nowhere() -> None:
    task = needle("needle-2k", TOKENIZER, 10, DOCUMENTS)
    assert task == needle("needle-2k", TOKENIZER, 10, DOCUMENTS)
    for number, example in enumerate(task.examples):
        text, question = example.prompt.split("\n\n")
        fact = f"{question}{example.answer}."
        assert text.count(fact) == 1
        depth = text.index(fact) / (len(text) - len(fact))
        assert depth == pytest.approx(DEPTHS[number % len(DEPTHS)], abs=0.05)
        assert len(set(example.choices)) == 4
        assert [choice for choice in example.choices if choice in text] == [example.answer]


def test_filler_is_held_out_text_where_there_is_enough_of_it() -> None:
    (example,) = needle("needle-1k", TOKENIZER, 1, DOCUMENTS).examples
    assert example.prompt.count("of document") > 10
    (example,) = needle("needle-1k", TOKENIZER, 1, DOCUMENTS[:1]).examples
    assert "of document" not in example.prompt
