"""How likely a student finds given tokens, in batches and in chunks, so that memory does not grow with their number."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from student.model.blocks import RecurrentState
from student.model.student import Student
from student.model.xlstm import PREFILL_LENGTH

TOGETHER = 8
"""Rows per batch."""
LOGITS_AT_ONCE = 2**24
"""Logits computed at a time, in float32."""


@torch.no_grad()
def log_probabilities(student: Student, rows: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
    """Of each row of n tokens: the log-probability of each token but the first, and whether it is the likeliest.

    Both (n - 1,), on the CPU, float32 and bool; in the rows' order, whatever their lengths.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for numbers in batches([len(row) for row in rows]):
        parts = [x.cpu() for x in _of_batch(student, [rows[number] for number in numbers])]
        for place, number in enumerate(numbers):
            known = len(rows[number]) - 1
            found[number] = parts[0][place, :known], parts[1][place, :known]
    return [found[number] for number in range(len(rows))]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of rows in batches of like lengths, the longest first; rows of more than a chunk are read alone."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    together: list[int] = []
    for number in order:
        together.append(number)
        if len(together) == TOGETHER or lengths[number] > PREFILL_LENGTH:
            yield together
            together = []
    if together:
        yield together


def _of_batch(student: Student, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Both (B, longest - 1). Shorter rows are padded on the right, which nothing before it sees."""
    device, longest = student.embedding.device, max(map(len, rows))
    tokens = torch.zeros(len(rows), max(longest, 2), dtype=torch.long)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    state: RecurrentState = {}
    found = []
    for begin in range(0, tokens.shape[1] - 1, PREFILL_LENGTH):
        part = tokens[:, begin : begin + PREFILL_LENGTH + 1].to(device)
        hidden_states, state = student.prefill(part[:, :-1], state)
        found.append(_of_states(student, hidden_states, part[:, 1:]))
    likelihoods, likeliest = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return likelihoods, likeliest


def _of_states(student: Student, hidden_states: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """Of hidden states (B, T, d) and the tokens (B, T) that follow them."""
    size = max(1, LOGITS_AT_ONCE // (student.vocab_size * len(hidden_states)))
    parts = []
    for states, tokens in zip(*(torch.split(x, size, dim=1) for x in (hidden_states, following)), strict=True):
        logits = student.logits(states).float()
        known = logits.gather(-1, tokens[..., None])[..., 0] - logits.logsumexp(dim=-1)
        parts.append((known, logits.argmax(dim=-1) == tokens))
    likelihoods, likeliest = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return likelihoods, likeliest
