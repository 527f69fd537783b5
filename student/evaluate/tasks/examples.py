"""An example of a task, and tasks out of files of JSON lines."""

import json
from dataclasses import dataclass
from pathlib import Path

from delta_common.errors import UserError

WANTED = 'give lines such as {"prompt": "2 + 2 =", "answer": " 4", "choices": [" 4", " 5"]}'


@dataclass(frozen=True)
class Example:
    """A text to continue, and how it should go on.

    Its prompt does not end in a space; answer and choices begin with the one that parts them from it.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    """With the answer among them; empty where nothing is to be chosen."""
    group: int = 0
    """Number of the document it was made from: examples of one are not independent."""
    writes: bool = True
    """Whether the answer is also to be written, rather than only chosen."""


@dataclass(frozen=True)
class Task:
    """Examples under a name."""

    name: str
    examples: tuple[Example, ...]


def read_task(path: Path, limit: int | None = None) -> Task:
    """The first `limit` examples of a file of JSON lines, a task named as the file.

    A line has `prompt` and `answer`, and `choices` where one of several is to be chosen. An answer that is a number is
    the place of the right choice, from 0; it is then chosen and not written. Raises `UserError` naming file and line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--tasks {path}: not readable as text ({error}); give a file of JSON lines") from error
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()][:limit]
    if not numbered:
        raise UserError(f"--tasks {path}: no examples in it; {WANTED}")
    examples = tuple(_example(line, number, f"--tasks {path}: line {number}") for number, line in numbered)
    if len({(bool(example.choices), example.writes) for example in examples}) > 1:
        raise UserError(f"--tasks {path}: some lines have choices, or a number for an answer, and some not; part them")
    return Task(path.stem, examples)


def _example(line: str, number: int, where: str) -> Example:
    try:
        said = json.loads(line)
        prompt, answer, choices = said["prompt"], said["answer"], tuple(said.get("choices", ()))
        chosen = type(answer) is int
        answer = choices[answer] if chosen and answer >= 0 else answer
        texts = (prompt, answer, *choices)
        if not all(isinstance(text, str) and text for text in texts):
            raise ValueError("prompt, answer and choices are texts, and none is empty")
        if choices and (answer not in choices or len(set(choices)) < len(choices)):
            raise ValueError("the answer is one of the choices, and no two are the same")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{where}: {_fault(error)}; {WANTED}") from error
    return Example(prompt, answer, choices, number, writes=not chosen)


def _fault(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
