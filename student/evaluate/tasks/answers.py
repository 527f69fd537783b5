"""How a student does on the examples of a task: what it chooses by likelihood, and what it writes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from delta_common.errors import UserError
from student.evaluate.tasks.examples import Example, Task
from student.inference.generate import read_prompts
from student.inference.likelihood import batches
from student.inference.load import Writer
from student.inference.tokenizer import encode_prompt
from student.model.causal_lm.student import CausalLMStudent
from student.model.state import select_rows

MORE_TOKENS = 4
"""Tokens written beyond the answer's own, which may be split in another way."""

Scores = dict[str, list[float]]
"""1 where an example is right, else 0, in the examples' order: `likelihood` where the answer is the likeliest choice,
`generation` where the likeliest text begins with it. One of them is absent where no example has it."""


@dataclass(frozen=True)
class _Asked:
    """An example in tokens. Row 0 of `paths` is what the student writes itself, then comes each choice."""

    example: Example
    prompt: list[int]
    paths: list[list[int]]
    length: int
    """Most tokens that are written."""


def longest_context(writer: Writer) -> int | None:
    """Most tokens that a model reads; None for a recurrence, which has no such length."""
    if not isinstance(writer.student, CausalLMStudent):
        return None
    return getattr(writer.student.model.config.get_text_config(), "max_position_embeddings", None)


def fits(writer: Writer, task: Task) -> bool:
    """Whether a model reads the longest example of a task at all."""
    longest, asked = longest_context(writer), [_asked(writer, example) for example in task.examples]
    return longest is None or all(len(each.prompt) + each.length <= longest for each in asked)


def answer(writer: Writer, task: Task) -> Scores:
    """The scores of a student, or of a teacher, on each example of a task.

    Each prompt is read once, in chunks; from there the student writes and is led along every choice at the same time.
    """
    asked = [_asked(writer, example) for example in task.examples]
    right: dict[int, tuple[float, float]] = {}
    for numbers in batches([len(each.prompt) for each in asked]):
        right |= dict(zip(numbers, _answers(writer, [asked[number] for number in numbers]), strict=True))
    ordered = [right[number] for number in range(len(asked))]
    names = {"likelihood": any(e.choices for e in task.examples), "generation": any(e.writes for e in task.examples)}
    return {name: [float(pair[place]) for pair in ordered] for place, name in enumerate(names) if names[name]}


def continuation(writer: Writer, prompt: Sequence[int], text: str, more: str) -> list[int]:
    """The tokens of `more` behind a text, whose own tokens are `prompt`."""
    whole = encode_prompt(writer.tokenizer, text + more)
    if len(whole) > len(prompt) and whole[: len(prompt)] == list(prompt):
        return whole[len(prompt) :]
    alone: list[int] = writer.tokenizer(more, add_special_tokens=False, verbose=False)["input_ids"]
    return alone


def _asked(writer: Writer, example: Example) -> _Asked:
    prompt = encode_prompt(writer.tokenizer, example.prompt)
    choices = [continuation(writer, prompt, example.prompt, choice) for choice in example.choices]
    if not prompt or not all(choices):
        raise UserError(f"the tokenizer makes no tokens of {example.prompt[-40:]!r} or of a choice; leave this one out")
    length = max(map(len, choices), default=0)
    if example.writes:
        own = continuation(writer, prompt, example.prompt, example.answer)
        length = max(length, len(own) + MORE_TOKENS)
    return _Asked(example, prompt, [[], *choices], length)


def _answers(writer: Writer, asked: Sequence[_Asked]) -> list[tuple[bool, bool]]:
    """For each example, whether the right choice is the likeliest, and whether the answer is written."""
    totals, written = _follow(writer, asked)
    found, row = [], 0
    for each in asked:
        own, choices = written[row], totals[row + 1 : row + len(each.paths)]
        row += len(each.paths)
        text = writer.tokenizer.decode(own, skip_special_tokens=True)
        likeliest = max(zip(choices, each.example.choices, strict=True), default=(0.0, ""))[1]
        found.append((likeliest == each.example.answer, _begins_with(text, each.example.answer)))
    return found


@torch.no_grad()
def _follow(writer: Writer, asked: Sequence[_Asked]) -> tuple[list[float], list[list[int]]]:
    """For every path of every example its log-probability, and the likeliest tokens up to the end of a text.

    Paths are rows of a batch, all of which go on by a token at each step.
    """
    student = writer.student
    last, state = read_prompts(student, [each.prompt for each in asked])
    owner = torch.tensor([number for number, each in enumerate(asked) for _ in each.paths])
    last, state = last[owner.to(last.device)], select_rows(state, owner)
    led = _table([path for each in asked for path in each.paths], max(each.length for each in asked))
    led = led.to(last.device)
    total = torch.zeros(len(led), device=last.device)
    chosen: list[Tensor] = []
    for step in range(led.shape[1]):
        if step:
            hidden_states, state = student.step(chosen[-1][:, None], state)
            last = hidden_states[:, -1]
        logits, goes = student.logits(last).float(), led[:, step]
        tokens = torch.where(goes >= 0, goes, logits.argmax(dim=-1))
        gain = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(dim=-1)
        total += torch.where(goes >= 0, gain, 0.0)
        chosen.append(tokens)
    rows: list[list[int]] = torch.stack(chosen, dim=1).tolist()
    return total.tolist(), [_until(row, writer.stop_token) for row in rows]


def _table(paths: Sequence[Sequence[int]], length: int) -> Tensor:
    """Paths (P, length), -1 where a path has ended."""
    table = torch.full((len(paths), length), -1)
    for row, path in enumerate(paths):
        table[row, : len(path)] = torch.tensor(path, dtype=torch.long)
    return table


def _until(tokens: list[int], stop_token: int | None) -> list[int]:
    return tokens[: tokens.index(stop_token)] if stop_token in tokens else tokens


def _begins_with(text: str, answer: str) -> bool:
    """Whether a text is the answer up to its first other sign, spaces aside."""
    return re.match(rf"\s*{re.escape(answer.strip())}(?!\w)", text) is not None
