"""Figures to the right, words to the left."""

from experiments.results.markdown import markdown_table


def test_columns_of_words_are_aligned_to_the_left() -> None:
    found = markdown_table(["", "steps", "verdict"], [["paper", "8", "better"]], words=(0, 2))
    assert found == "|  | steps | verdict |\n| --- | ---: | --- |\n| paper | 8 | better |"
