"""A student's writing as its teacher judges it: how likely the teacher finds it, and how much of it repeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np
from numpy.typing import NDArray

from delta_common.errors import UserError
from student.evaluate.bootstrap import Interval, intervals
from student.inference.generate import Sampling, generate_all
from student.inference.likelihood import TOGETHER, log_probabilities
from student.inference.load import Writer
from student.inference.tokenizer import encode_prompt

PROMPT_TOKENS = 16
WRITTEN_TOKENS = 128
GRAM = 4
WAYS = {"likeliest": Sampling(0.0), "drawn": Sampling(1.0)}
"""The likeliest token each time, and tokens drawn at T = 1."""


@dataclass(frozen=True)
class Beginning:
    """A beginning out of a document, and how the document goes on, in tokens."""

    prompt: list[int]
    text: list[int]
    document: int


@dataclass(frozen=True)
class Written:
    """What somebody wrote in some way, all beginnings together; None where it is nothing."""

    by: str
    """`student`, `teacher`, or `the text itself`, how the documents go on."""
    way: str
    """`likeliest` or `drawn`; empty for the text itself."""
    texts: int
    tokens_per_text: float
    """Without the token that ends a text."""
    perplexity: Interval | None
    """exp of the teacher's mean cross-entropy of the written tokens, nats per token."""
    repetition: Interval | None
    """Share of 4-grams of tokens that their text has had before."""


def beginnings(writer: Writer, documents: Sequence[str], count: int) -> list[Beginning]:
    """16 tokens and the 128 after them, from all documents in turn. Raises `UserError` where none has so many."""
    size = PROMPT_TOKENS + WRITTEN_TOKENS
    tokens = [encode_prompt(writer.tokenizer, text) for text in documents]
    of_each = [range(0, len(each) - size + 1, size) for each in tokens]
    places = [
        (number, place) for turn in zip_longest(*of_each) for number, place in enumerate(turn) if place is not None
    ]
    if not places:
        raise UserError(f"--tasks writing: no held-out document has {size} tokens; give --corpus of longer ones")
    return [
        Beginning(tokens[n][place : place + PROMPT_TOKENS], tokens[n][place + PROMPT_TOKENS : place + size], n)
        for n, place in islice(places, count)
    ]


def judged(by: str, writer: Writer, teacher: Writer, begun: Sequence[Beginning]) -> list[Written]:
    """What a student, or the teacher itself, writes after each beginning, under the teacher."""
    found = []
    for way, sampling in WAYS.items():
        texts: list[list[int]] = []
        for first in range(0, len(begun), TOGETHER):
            prompts = [each.prompt for each in begun[first : first + TOGETHER]]
            texts += generate_all(
                writer.student,
                prompts,
                max_new_tokens=WRITTEN_TOKENS,
                sampling=sampling,
                stop_token=writer.stop_token,
                first_number=first,
            )
        found.append(_written(by, way, texts, teacher, begun))
    return found


def judged_text(teacher: Writer, begun: Sequence[Beginning]) -> Written:
    """How the documents themselves go on, under the teacher: what its own numbers are to be read beside."""
    return _written("the text itself", "", [each.text for each in begun], teacher, begun)


def repeated(tokens: Sequence[int]) -> tuple[int, int]:
    """How many 4-grams of a text it has had before, and how many it has."""
    grams = [tuple(tokens[place : place + GRAM]) for place in range(len(tokens) - GRAM + 1)]
    return len(grams) - len(set(grams)), len(grams)


def _written(by: str, way: str, texts: Sequence[list[int]], teacher: Writer, begun: Sequence[Beginning]) -> Written:
    rows = [each.prompt + text for each, text in zip(begun, texts, strict=True)]
    known = log_probabilities(teacher.student, rows)
    surprise = [
        -float(found[len(each.prompt) - 1 :].double().sum()) for each, (found, _) in zip(begun, known, strict=True)
    ]
    columns = [(nats, len(text), *repeated(text)) for nats, text in zip(surprise, texts, strict=True)]
    group = np.unique([each.document for each in begun], return_inverse=True)[1]
    sums = np.stack([np.bincount(group, weights=column) for column in np.array(columns, np.float64).T], axis=1)
    perplexity, repetition = (_known(each) for each in intervals(sums.astype(np.float64), _ratios))
    return Written(by, way, len(texts), float(np.mean([len(text) for text in texts])), perplexity, repetition)


def _ratios(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    nats, tokens, again, grams = np.moveaxis(sums, -1, 0)
    mean = np.divide(nats, tokens, out=np.full_like(nats, np.nan), where=tokens > 0)
    share = np.divide(again, grams, out=np.full_like(again, np.nan), where=grams > 0)
    return np.stack([np.exp(np.minimum(mean, 700.0)), share], axis=-1)


def _known(found: Interval) -> Interval | None:
    if np.isnan(found.value):
        return None
    return Interval(found.value) if found.low is None or np.isnan(found.low) else found
