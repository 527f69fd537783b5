"""Text from a student: the prompt at once, then one token at a time, greedy or drawn at a temperature."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cli_common.errors import UserError
from student.models.xlstm import XLSTMStudent


class TextCodec(Protocol):
    """What of a tokenizer is needed."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: list[int]) -> str: ...


def sample_text(
    student: XLSTMStudent,
    tokenizer: TextCodec,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop_token: int | None = None,
) -> str:
    """The prompt with the student's continuation; arguments as for `generate_tokens`."""
    tokens = tokenizer.encode(prompt)
    return tokenizer.decode(
        tokens
        + generate_tokens(
            student,
            tokens,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop_token=stop_token,
        )
    )


@torch.no_grad()
def generate_tokens(
    student: XLSTMStudent,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    stop_token: int | None = None,
) -> list[int]:
    """Up to `max_new_tokens` tokens that follow the prompt; `stop_token` ends them and is not among them.

    Temperature 0 takes the likeliest token, above it tokens are drawn with a generator seeded by `seed`. Memory grows
    with the prompt by its hidden states alone. Raises `UserError` for an empty prompt or a negative temperature.
    """
    if not prompt:
        raise UserError("the prompt is empty; give at least one token to continue")
    if temperature < 0:
        raise UserError(f"temperature {temperature:g} is negative; give 0 for the likeliest tokens, or more")
    device = student.embedding.device
    random = torch.Generator(device).manual_seed(seed)
    generated: list[int] = []
    pending, state = list(prompt), None
    while len(generated) < max_new_tokens:
        advance = student.prefill if state is None else student.step
        hidden_states, state = advance(torch.tensor([pending], device=device), state)
        token = _choose(student.logits(hidden_states[0, -1]), temperature, random)
        if token == stop_token:
            break
        generated.append(token)
        pending = [token]
    return generated


def _choose(logits: Tensor, temperature: float, random: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=random))
