"""The command line of `student-generate`."""

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from delta_common.command import LOCAL_PATH, run_app
from delta_common.errors import UserError

if TYPE_CHECKING:
    from student.inference.generate import Sampling
    from student.inference.load import Writer

TOGETHER = 8
"""Prompts per batch."""

app = App(name="student-generate")


@app.default
def generate(
    student: Annotated[Path, LOCAL_PATH],
    *,
    prompt: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    prompts: Annotated[Path | None, LOCAL_PATH] = None,
    chat: Annotated[bool, Parameter(negative=())] = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_new_tokens: int = 128,
) -> int:
    """Continue prompts with a trained student, or talk with it; text is printed as it is generated.

    Memory and time per token do not grow with the text. A prompt may have any length.

    Parameters
    ----------
    student
        Folder that student-export wrote, or of a finished student-train run, which needs its cache.
    prompt
        Text to continue; may be given more than once.
    prompts
        Text file with one prompt per line; empty lines are skipped.
    chat
        Talk: each line is a message, answered with the tokenizer's chat template. Ctrl-D ends, Ctrl-C stops an answer.
    temperature
        0 always takes the most likely token. Above 0, tokens are sampled; higher values sample more evenly.
    top_p
        Sample only from the most likely tokens that together have this probability, above 0 and up to 1.
    seed
        Seed of the sampling: the same seed and prompts give the same text.
    max_new_tokens
        Longest continuation, in tokens; a text may end earlier.
    """
    from student.inference.generate import Sampling

    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: give 1 or more")
    sampling = Sampling(temperature, top_p, seed)
    if chat:
        if prompt or prompts:
            raise UserError(
                "--chat and --prompt or --prompts: a conversation begins with what you type; give one of them"
            )
        from student.cli.chat import talk

        return talk(_loaded(student), sampling, max_new_tokens)
    groups = _groups(_texts(prompt, prompts))
    first = next(groups, None)
    if first is None:
        raise UserError("nothing to continue; give --prompt TEXT, --prompts FILE with a prompt in a line, or --chat")

    writer = _loaded(student)
    for group, texts in enumerate(chain([first], groups)):
        sys.stdout.write("\n" if group else "")
        _write(writer, texts, sampling, max_new_tokens, group * TOGETHER)
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


def _loaded(path: Path) -> "Writer":
    import torch

    from student.evaluate.trained import load_any_writer

    return load_any_writer(path, torch.accelerator.current_accelerator() or torch.device("cpu"))


def _write(writer: "Writer", texts: Sequence[str], sampling: "Sampling", max_new_tokens: int, number: int) -> None:
    """Continue texts as one batch, and print each as soon as all texts before it are printed."""
    from student.inference.generate import continue_prompts
    from student.inference.text_stream import TextStream
    from student.inference.tokenizer import encode_prompt

    tokens = [encode_prompt(writer.tokenizer, text) for text in texts]
    streams = [TextStream(writer.tokenizer, prompt) for prompt in tokens]
    written = _InOrder(texts)
    steps = continue_prompts(
        writer.student,
        tokens,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_token=writer.stop_token,
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
    """Prints texts in order, separated by an empty line; the first unfinished text is printed as it grows."""

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
