"""What the page needs to show rows token by token and to compute the teacher at any temperature by itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from delta_common.errors import UserError
from teacher_cache.format.arrays import ROLES
from teacher_cache.inspect.curves import spread_rows
from teacher_cache.inspect.entries import MOST_CERTAIN, RowEntries, fold, highest_unkept_logit, next_logits, row_entries
from teacher_cache.inspect.rows import checked_span, running_text, token_decoder, usual_temperature
from teacher_cache.read.cache import Cache

USUAL_ROWS = 4
USUAL_POSITIONS = 128
MOST_SAMPLED = 64
DECIMALS = 4
"""Of logits and log-masses on a page: the relative error of a probability is then about 1e-4."""


@dataclass(frozen=True)
class TokenData:
    """`json` for the page's script, and what was left out, in words."""

    json: dict[str, Any]
    cut: list[str]


def token_data(cache: Cache, rows: list[int] | None, span: tuple[int, int | None] | None) -> TokenData:
    """Chosen rows, or a few spread over the cache; the positions asked for, or the first 128.

    Raises `UserError` naming `--rows` or `--tokens` when one does not exist or is not built yet.
    """
    chosen = spread_rows(cache, USUAL_ROWS) if rows is None else [_checked_row(cache, row) for row in rows]
    first, last = checked_span(cache, *(span or (0, min(USUAL_POSITIONS, cache.manifest.seq_len))))
    texts = _Texts(token_decoder(cache))
    layout = cache.layout
    certain = cache.manifest.vocab_size if layout.mode == "exact" else layout.top_k
    nodes = layout.node_temperatures
    json = {
        "top_k": min(certain, MOST_CERTAIN),
        "samples": layout.samples,
        "proposal": layout.proposal,
        "nodes": nodes,
        "lowest": min(nodes),
        "highest": max(nodes),
        "temperature": usual_temperature(cache),
        "has_text": cache.tokenizer_folder is not None,
        "rows": [_row(cache, row, first, last, texts) for row in chosen],
    }
    return TokenData({**json, "texts": texts.by_id}, _left_out(cache, len(chosen), first, last, certain))


class _Texts:
    """The text of every token shown, by its id."""

    def __init__(self, decode: Callable[[int], str]) -> None:
        self._decode = decode
        self.by_id: dict[int, str] = {}

    def add(self, token: int) -> int:
        if token not in self.by_id:
            self.by_id[token] = running_text(self._decode(token))
        return token


def _checked_row(cache: Cache, row: int) -> int:
    if not 0 <= row < len(cache):
        raise UserError(f"--rows {row}: the cache has rows 0 to {len(cache) - 1}")
    if row // cache.manifest.rows.rows_per_shard not in cache.commits:
        raise UserError(f"--rows {row}: its shard is not built yet; choose another, or run teacher-cache build again")
    return row


def _row(cache: Cache, row: int, first: int, last: int, texts: _Texts) -> dict[str, Any]:
    """Tokens first to last, both included, and the distributions of all but the first of them."""
    stored = cache[row]
    tokens = torch.from_numpy(stored.tokens.astype(np.int64))
    entries = row_entries(cache, row).at(slice(first, last))
    following = next_logits(entries, tokens[first + 1 : last + 1])
    entries = fold(entries)
    ceilings = highest_unkept_logit(entries) if cache.layout.mode == "sparse" else following
    return {
        "row": row,
        "first": first,
        "tokens": [texts.add(int(token)) for token in tokens[first : last + 1]],
        "roles": _roles(stored.role, first, last),
        "starts": (np.flatnonzero(stored.document_start[first:last])).tolist(),
        "positions": [
            _position(entries, t, float(following[t]), float(ceilings[t]), texts)
            if stored.loss_mask[first + t]
            else None
            for t in range(last - first)
        ],
    }


def _roles(role: NDArray[np.uint8] | None, first: int, last: int) -> list[str] | None:
    """Who speaks each token behind the first, of conversations."""
    return None if role is None else [ROLES[code] for code in role[first:last]]


def _position(entries: RowEntries, at: int, following: float, ceiling: float, texts: _Texts) -> dict[str, Any]:
    """One distribution: ids, logits relative to the largest, log-mass, and what is known of the next token's logit."""
    used = int((entries.values[at] > -torch.inf).sum())
    shown = min(used, entries.layout.top_k + MOST_SAMPLED)
    return {
        "ids": [texts.add(int(token)) for token in entries.ids[at, :shown]],
        "logits": _rounded(entries.values[at, :shown] - entries.values[at, 0]),
        "log_mass": _rounded(entries.log_mass[at]),
        "next": None if math.isnan(following) else round(following, DECIMALS),
        "ceiling": round(ceiling, DECIMALS),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, DECIMALS) for value in values.tolist()]


def _left_out(cache: Cache, rows: int, first: int, last: int, certain: int) -> list[str]:
    committed, length = sum(len(span) for span in cache.shards), cache.manifest.seq_len
    cut = []
    if rows < committed:
        cut.append(f"{rows} of {committed:,} rows (others: --rows A,B)")
    if last - first < length:
        cut.append(f"positions {first} to {last - 1} of {length} (others: --tokens A:B)")
    if certain > MOST_CERTAIN:
        cut.append(f"the first {MOST_CERTAIN} of {certain:,} certain entries; the others are counted as outside")
    if cache.layout.samples > MOST_SAMPLED:
        cut.append(f"the {MOST_SAMPLED} largest of up to {cache.layout.samples} sampled entries per position")
    return cut
