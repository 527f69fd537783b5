"""Tokenizes a long document piece by piece: a tokenizer at work takes a hundred times the memory of its result."""

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

PIECE = 2**20
"""Characters per piece."""
OVERLAP = 2**12
"""Characters that a piece shares with the one before it."""


def encode_long(backend: Tokenizer, text: str, piece: int = PIECE, overlap: int = OVERLAP) -> NDArray[np.uint32]:
    """Token ids (n,) of a text of any length, the same as if it were encoded at once.

    Neighbouring pieces overlap. A tokenizer looks at nearby characters only, so both give the same tokens for most of
    the overlap; they are joined in the middle of the tokens they agree on. If they agree on less than a quarter of the
    overlap, as in a single word of a million letters, the whole text is encoded at once.

    Args:
        backend: the tokenizer; it reports the characters that each token stands for.
        text: the document.
        piece: characters per piece.
        overlap: characters that a piece shares with the one before.
    """
    if len(text) <= piece:
        return np.array(backend.encode(text, add_special_tokens=False).ids, np.uint32)
    ids, starts = _encoded(backend, text, 0, piece)
    done: list[NDArray[np.uint32]] = []
    end = piece
    while end < len(text):
        begin = end - overlap
        later_ids, later_starts = _encoded(backend, text, begin, min(begin + piece, len(text)))
        joint = _joint(ids, starts, later_ids, later_starts, end, overlap)
        if joint is None:
            return np.array(backend.encode(text, add_special_tokens=False).ids, np.uint32)
        done.append(ids[: joint[0]])
        ids, starts = later_ids[joint[1] :], later_starts[joint[1] :]
        end = min(begin + piece, len(text))
    return np.concatenate([*done, ids])


def _encoded(backend: Tokenizer, text: str, begin: int, end: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Token ids (n,) of text[begin:end], and the index in `text` at which each token begins (n,)."""
    encoding = backend.encode(text[begin:end], add_special_tokens=False)
    offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    return np.array(encoding.ids, np.uint32), offsets[:, 0] + begin


def _joint(
    ids: NDArray[np.uint32],
    starts: NDArray[np.int64],
    later_ids: NDArray[np.uint32],
    later_starts: NDArray[np.int64],
    end: int,
    overlap: int,
) -> tuple[int, int] | None:
    """How many tokens to keep of a piece that ends at character `end`, and how many to drop from the next one."""
    last = end - overlap // 16  # the cut may change the tokens next to it
    ours = np.flatnonzero((starts >= later_starts[0]) & (starts < last))
    theirs = np.flatnonzero(later_starts < last)
    agree = 0
    while agree < min(len(ours), len(theirs)):
        i, j = ours[-1 - agree], theirs[-1 - agree]
        if ids[i] != later_ids[j] or starts[i] != later_starts[j]:
            break
        agree += 1
    if not agree or starts[ours[-agree]] > last - overlap // 4:
        return None
    middle = agree // 2 or 1
    return int(ours[-middle]), int(theirs[-middle])
