"""Every measure has words, and every word a measure."""

from dataclasses import fields

from student.evaluate.held_out import Scores
from student.run.measure_words import ADAPTIVE_WORDS, MEASURE_WORDS
from student.train.measure import Measures


def test_words_are_those_of_what_is_measured() -> None:
    while_training = [field.name for field in fields(Measures) if field.name != "tokens"]
    assert list(MEASURE_WORDS) == while_training
    assert list(MEASURE_WORDS | ADAPTIVE_WORDS) == [field.name for field in fields(Scores)]


def test_numbers_are_written_with_their_units() -> None:
    assert MEASURE_WORDS["perplexity"][1].format(1234.567) == "1,234.57"
    assert MEASURE_WORDS["agreement"][1].format(0.12345) == "12.35%"
    assert MEASURE_WORDS["cross_entropy"][1].format(2.0) == "2.0000"
