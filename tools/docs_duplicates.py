"""Which texts repeat others: the same words, nearly the same words, or what several shorter ones say between them."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import xxhash

if TYPE_CHECKING:
    from datasketch import LeanMinHash

Shingles = npt.NDArray[np.uint32]

SHINGLE, BANDS, ROWS, SHINGLES_AT_ONCE = 5, 14, 8, 10_000
"""MinHash as FineWeb has it: shingles of five words, 14 bands of 8 hashes, pages alike by about three quarters."""

REPEATED = 0.8
"""A page is dropped when this share of its shingles stands in shorter pages of its package: a book in one file too."""


def shingle_hashes(text: str) -> Shingles:
    """Hashes of the text's runs of SHINGLE words, (S,) uint32, sorted, each once."""
    words = text.lower().split()
    runs = {" ".join(words[i : i + SHINGLE]).encode() for i in range(max(1, len(words) - SHINGLE + 1))}
    return np.unique(np.fromiter(map(xxhash.xxh32_intdigest, runs), np.uint32, len(runs)))


def fingerprint(text: str) -> tuple[Shingles, "LeanMinHash"]:
    """The hashes of the text's shingles, and MinHash of them."""
    from datasketch import LeanMinHash, MinHash

    hashes = shingle_hashes(text)
    found = MinHash(BANDS * ROWS, hashfunc=int)
    for start in range(0, len(hashes), SHINGLES_AT_ONCE):
        found.update_batch(hashes[start : start + SHINGLES_AT_ONCE].tolist())
    return hashes, LeanMinHash(found)


class Distinct:
    """Remembers the texts it was shown: those of a package by all their shingles, those of others by MinHash."""

    def __init__(self) -> None:
        from datasketch import MinHashLSH

        self._digests: set[bytes] = set()
        self._index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
        self._shingles: set[int] = set()

    def next_package(self) -> None:
        """Forget the shingles of the package before."""
        self._shingles.clear()

    def fault(self, text: str, hashes: Shingles, near: "LeanMinHash") -> str | None:
        """How the text repeats earlier ones, in the words of the manifest; None for a new one, which it remembers."""
        digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if digest in self._digests:
            return "exact duplicate"
        if self._index.query(near):
            return "near duplicate"
        mine = set(hashes.tolist())
        if len(mine & self._shingles) >= REPEATED * len(mine):
            return "repeats other pages"
        self._digests.add(digest)
        self._index.insert(digest, near)
        self._shingles |= mine
        return None
