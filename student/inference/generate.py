"""Tokens from a student: it reads a prompt in chunks, then writes one token at a time.

Only the recurrent state is carried on, so memory and time per token stay constant however long the text is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.model.blocks import RecurrentState
from student.model.state import select_rows
from student.model.student import Student
from student.model.xlstm import PREFILL_LENGTH


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises `UserError` for values out of range."""

    temperature: float = 0.0
    """0 takes the likeliest token; above it tokens are drawn."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens that together have this probability."""
    seed: int = 0
    """A prompt's random numbers have the seed `seed` plus the prompt's number."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature {self.temperature:g} is negative or no number; give 0 for the likeliest tokens, or more"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p {self.top_p:g} is no share of the probability; give more than 0 and at most 1")


def generate_tokens(
    student: Student,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop_token: int | None = None,
) -> list[int]:
    """Up to `max_new_tokens` tokens after the prompt; they end before a `stop_token`.

    Raises `UserError` for an empty prompt or a negative temperature.
    """
    sampling = Sampling(temperature, seed=seed)
    return generate_all(student, [prompt], max_new_tokens=max_new_tokens, sampling=sampling, stop_token=stop_token)[0]


def generate_all(
    student: Student,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop_token: int | None = None,
    first_number: int = 0,
) -> list[list[int]]:
    """What `continue_prompts` writes after each prompt, all of it."""
    written: list[list[int]] = [[] for _ in prompts]
    for step in continue_prompts(
        student,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_token=stop_token,
        first_number=first_number,
    ):
        for number, token in step.items():
            written[number].append(token)
    return written


@torch.no_grad()
def continue_prompts(
    student: Student,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop_token: int | None = None,
    first_number: int = 0,
) -> Iterator[dict[int, int]]:
    """For each step, the next token of each prompt that has not ended, keyed by the prompt's index in `prompts`.

    A prompt ends before a `stop_token`. Prompts may differ in length; each is continued as it would be alone.
    `first_number` is the number of the first prompt, where these prompts are part of a longer list. Raises `UserError`
    for an empty prompt.
    """
    if not all(prompts):
        raise UserError("the prompt is empty; give at least one token to continue")
    device = student.embedding.device
    randoms = [torch.Generator(device).manual_seed(sampling.seed + first_number + row) for row in range(len(prompts))]
    rows = list(range(len(prompts)))
    hidden_states, state = read_prompts(student, prompts)
    for left in reversed(range(max_new_tokens)):
        logits = student.logits(hidden_states)
        chosen = [choose(logits[place], sampling, randoms[row]) for place, row in enumerate(rows)]
        going = [place for place, token in enumerate(chosen) if token != stop_token]
        yield {rows[place]: chosen[place] for place in going}
        if not going or not left:
            return
        if len(going) < len(rows):
            rows, chosen = [rows[place] for place in going], [chosen[place] for place in going]
            state = select_rows(state, torch.tensor(going))
        hidden_states, state = student.step(torch.tensor(chosen, device=device)[:, None], state)
        hidden_states = hidden_states[:, -1]


def read_prompts(student: Student, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, RecurrentState]:
    """Hidden states (B, d) after the last token of each prompt, and the recurrent state there.

    Shorter prompts are padded on the left, and forget the padding where they begin. Memory holds one chunk and
    all tokens.
    """
    tokens, starts = _right_aligned(prompts)
    state: RecurrentState = {}
    for begin in range(0, tokens.shape[1], PREFILL_LENGTH):
        span = slice(begin, begin + PREFILL_LENGTH)
        part, some = (x[:, span].to(student.embedding.device) for x in (tokens, starts))
        hidden_states, state = student.prefill(part, state, some if len(prompts) > 1 else None)
        last = hidden_states[:, -1]
    return last, state


def _right_aligned(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) padded on the left, and a mask (B, T) of where each prompt starts."""
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    starts = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        starts[row, longest - len(prompt)] = True
    return tokens, starts


def choose(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """The next token, of logits (V,)."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    wide = logits.double()
    probabilities = torch.softmax((wide - wide.max()) / sampling.temperature, dim=-1)
    return int(torch.multinomial(nucleus(probabilities, sampling.top_p), 1, generator=random))


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Probabilities (V,) with all set to 0 but the fewest likeliest that together have `top_p`; not rescaled."""
    if top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(probabilities).scatter(-1, order, ordered * (before < top_p))
