"""`student-generate`: parse, call, print, exit code."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from delta_common.command import run_app
from delta_common.errors import UserError

if TYPE_CHECKING:
    from student.inference.generate import Sampling
    from student.inference.load import ExportedStudent

TOGETHER = 8
"""Prompts continued as one batch."""

app = App(name="student-generate")


@app.default
def generate(
    export: Path,
    *,
    prompt: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    prompts: Path | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 128,
) -> int:
    """Continue prompts with an exported student; text is printed as it comes.

    Memory and the time a token takes do not grow with the text. A prompt may be of any length.

    Parameters
    ----------
    export
        Folder of student-export.
    prompt
        Text to continue; may be given several times.
    prompts
        Text file with a prompt in every line that is not empty.
    temperature
        0 takes the likeliest token every time; above it tokens are drawn, more evenly the higher it is.
    top_p
        Draw from the likeliest tokens that have this probability together.
    seed
        Decides what is drawn: the same for the same prompt at the same place.
    max_new_tokens
        Tokens after each prompt, if the text does not end before.
    """
    from student.inference.generate import Sampling

    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: give 1 or more")
    sampling = Sampling(temperature, top_p, seed)
    groups = _groups(_texts(prompt, prompts))
    first = next(groups, None)
    if first is None:
        raise UserError("nothing to continue; give --prompt TEXT, or --prompts FILE with a prompt in a line")

    import torch

    from student.inference.load import load_export

    student = load_export(export, torch.accelerator.current_accelerator() or torch.device("cpu"))
    for group, texts in enumerate(chain([first], groups)):
        sys.stdout.write("\n" if group else "")
        _write(student, texts, sampling, max_new_tokens, group * TOGETHER)
    return 0


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


def _texts(given: Sequence[str], file: Path | None) -> Iterator[str]:
    yield from given
    if file is None:
        return
    try:
        with file.open(encoding="utf-8") as lines:
            yield from (line.rstrip("\r\n") for line in lines if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {file}: not readable as text ({error}); give a UTF-8 file") from error


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    while group := list(islice(texts, TOGETHER)):
        yield group


def _write(
    student: "ExportedStudent", texts: Sequence[str], sampling: "Sampling", max_new_tokens: int, number: int
) -> None:
    """Continue texts together, and print each as soon as those before it are printed."""
    from student.inference.generate import continue_prompts
    from student.inference.text_stream import TextStream
    from student.inference.tokenizer import encode_prompt

    tokens = [encode_prompt(student.tokenizer, text) for text in texts]
    streams = [TextStream(student.tokenizer, prompt) for prompt in tokens]
    written = _InOrder(texts)
    steps = continue_prompts(
        student.student,
        tokens,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_token=student.stop_token,
        first_number=number,
    )
    going = set(range(len(texts)))
    for step in steps:
        for row, token in step.items():
            written.add(row, streams[row].add(token))
        for row in sorted(going - step.keys()):
            written.add(row, streams[row].finish())
            written.end(row)
        going &= step.keys()
    for row in sorted(going):
        written.add(row, streams[row].finish())
        written.end(row)


class _InOrder:
    """Prints texts one after another, an empty line between, the first that has not ended as it grows."""

    def __init__(self, beginnings: Sequence[str]) -> None:
        self._kept = list(beginnings)
        self._ended = [False] * len(beginnings)
        self._shown = 0
        self._flush()

    def add(self, row: int, text: str) -> None:
        self._kept[row] += text
        self._flush()

    def end(self, row: int) -> None:
        self._kept[row] += "\n"
        self._ended[row] = True
        self._flush()

    def _flush(self) -> None:
        while self._shown < len(self._kept):
            sys.stdout.write(self._kept[self._shown])
            self._kept[self._shown] = ""
            if not self._ended[self._shown]:
                break
            self._shown += 1
            sys.stdout.write("\n" if self._shown < len(self._kept) else "")
        sys.stdout.flush()
