"""Texts that repeat others are found: the same, nearly the same, and what shorter ones say between them."""

import random
from types import ModuleType

import numpy as np
import pytest

from tests.helpers.tool_modules import script


@pytest.fixture(scope="module")
def duplicates() -> ModuleType:
    return script("docs_duplicates")


@pytest.fixture
def known(duplicates: ModuleType) -> object:
    pytest.importorskip("datasketch")
    return duplicates.Distinct()


def text_of(seed: int, words: int = 400) -> str:
    letters = random.Random(seed)
    return " ".join("".join(letters.choices("abcdefgh", k=5)) for _ in range(words))


def faults(duplicates: ModuleType, known: object, *texts: str) -> list[str | None]:
    return [known.fault(text, *duplicates.fingerprint(text)) for text in texts]  # type: ignore[attr-defined]


def test_shingles_are_runs_of_five_words_each_once(duplicates: ModuleType) -> None:
    hashes = duplicates.shingle_hashes("a b c d e f\nA  b c d e")
    assert len(hashes) == 6, "'a b c d e' stands there twice"
    assert np.all(hashes[:-1] < hashes[1:])
    assert len(duplicates.shingle_hashes("a b")) == 1


def test_the_same_words_in_other_lines_are_an_exact_duplicate(duplicates: ModuleType, known: object) -> None:
    text = text_of(1)
    assert faults(duplicates, known, text, text.replace(" ", "\n", 50)) == [None, "exact duplicate"]


def test_a_page_with_a_few_words_changed_is_a_near_duplicate(duplicates: ModuleType, known: object) -> None:
    words = text_of(2).split()
    words[100] = words[200] = "other"
    assert faults(duplicates, known, text_of(2), " ".join(words)) == [None, "near duplicate"]


def test_a_page_that_shares_a_third_is_another_document(duplicates: ModuleType, known: object) -> None:
    shared = text_of(3, 130)
    assert faults(duplicates, known, f"{text_of(4, 270)} {shared}", f"{text_of(5, 270)} {shared}") == [None, None]


def test_a_book_in_one_page_repeats_its_chapters(duplicates: ModuleType, known: object) -> None:
    chapters = [text_of(seed) for seed in range(10, 16)]
    book = " ".join(chapters)
    assert faults(duplicates, known, *chapters, book) == [*[None] * 6, "repeats other pages"]
    known.next_package()  # type: ignore[attr-defined]
    assert faults(duplicates, known, book) == [None], "of another package it is known by MinHash only"
