"""A seeded corpus of words, long enough for any test here."""

import random
from pathlib import Path


def write_text_corpus(folder: Path, documents: int = 60, words: int = 120) -> Path:
    """A folder of plain text files."""
    chance = random.Random(0)
    vocabulary = ["".join(chance.choices("abcdefghij", k=chance.randint(2, 8))) for _ in range(400)]
    target = folder / "texts"
    target.mkdir()
    for number in range(documents):
        (target / f"{number:03d}.txt").write_text(" ".join(chance.choices(vocabulary, k=words)))
    return target
