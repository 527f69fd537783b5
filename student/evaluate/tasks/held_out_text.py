"""Tasks made of held-out text: a word or an API name that the passage has had before."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, zip_longest

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from delta_common.errors import UserError
from student.evaluate.held_out import DocumentNumbers, rows_in_order
from student.evaluate.tasks.examples import Example, Task
from student.evaluate.tasks.made import CHOICES, numbered_choices, seeded
from teacher_cache.read.cache import open_cache
from teacher_cache.read.decode import CachedRows

ROWS_AT_ONCE = 64
ENOUGH = 2**22
"""Characters of held-out text that are read: about a million tokens, of which more are not needed."""
PASSAGE = 800
"""Most characters of a passage before what is asked for."""
LEAST_PASSAGE = 200
WORD = re.compile(r"(?<= )[A-Za-z]{5,}\b")
API_NAME = re.compile(r"\b(?P<first>[A-Za-z][A-Za-z0-9]+)(?P<rest>(?:[._][A-Za-z0-9]+)+)\b")

Find = Callable[[str, re.Match[str]], tuple[str, str, set[str]] | None]
"""Of a document and a place in it: the prompt, the answer and wrong choices; None where the place does not do."""


def documents_of(rows: Iterable[CachedRows], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The documents of rows in order, as text. One that goes on in the next row is one document."""
    numbers, held, of = DocumentNumbers(), [], None
    for part in rows:
        found = zip(*_tokens(part, numbers.of(part.document_start)), strict=True)
        for document, token in found:
            if of is not None and document != of:
                yield tokenizer.decode(held, skip_special_tokens=True)
                held = []
            of = document
            held.append(token)
    if held:
        yield tokenizer.decode(held, skip_special_tokens=True)


def documents_of_caches(paths: Sequence[str]) -> list[str]:
    """The first documents of each of these caches. Raises `UserError` for a cache without a tokenizer."""
    from transformers import AutoTokenizer

    found: list[str] = []
    for path in paths:
        cache = open_cache(path)
        if cache.tokenizer_folder is None:
            raise UserError(f"--cache {path}: it has no tokenizer to read its text with; give one of a real teacher")
        tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder)
        found += first_texts(documents_of(rows_in_order(cache, ROWS_AT_ONCE), tokenizer))
    return found


def first_texts(documents: Iterable[str]) -> list[str]:
    """The first documents, up to some four million characters; a data set may have no end."""
    found, length = [], 0
    for text in documents:
        found.append(text)
        length += len(text)
        if length >= ENOUGH:
            break
    return found


def cloze(documents: Sequence[str], count: int) -> Task:
    """Words of five letters and more that stood in the passage before; the wrong choices did too."""
    return Task("cloze", _examples("cloze", documents, count, WORD, _blank))


def api_names(documents: Sequence[str], count: int) -> Task:
    """How a name such as `os.path.join` goes on after its first part, where the passage had the whole name before.

    The wrong choices are how other names go on, of the same first part where the documents have enough of them.
    """
    rests: dict[str, set[str]] = {}
    for match in (match for text in documents for match in API_NAME.finditer(text)):
        rests.setdefault(match["first"], set()).add(match["rest"])
    every = set().union(*rests.values())

    def unfinished(text: str, match: re.Match[str]) -> tuple[str, str, set[str]] | None:
        prompt = _passage(text, match.end("first"))
        if match[0] not in prompt:
            return None
        near = rests[match["first"]] - {match["rest"]}
        return prompt, match["rest"], near if len(near) >= CHOICES - 1 else every - {match["rest"]}

    return Task("names", _examples("names", documents, count, API_NAME, unfinished))


def _tokens(part: CachedRows, document: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """The document and the token at each position that has text. A row's last token is the next one's first."""
    # Of a conversation only answers count, but all of it is text; padding decodes to nothing.
    is_text = part.loss_mask if part.role is None else np.ones_like(part.loss_mask)
    return document[is_text].tolist(), part.tokens[:, :-1][is_text].tolist()


def _blank(text: str, match: re.Match[str]) -> tuple[str, str, set[str]] | None:
    prompt = _passage(text, match.start()).rstrip(" ")
    before = {f" {word}" for word in WORD.findall(prompt)}
    answer = f" {match[0]}"
    return (prompt, answer, before - {answer}) if answer in before else None


def _passage(text: str, end: int) -> str:
    """What stands before a place, from a whole word on."""
    begin = max(0, end - PASSAGE)
    if begin:
        begin = text.find(" ", begin, end) + 1
    return text[begin:end].lstrip()


def _examples(
    name: str, documents: Sequence[str], count: int, pattern: re.Pattern[str], find: Find
) -> tuple[Example, ...]:
    """Examples of all documents in turn, until there are enough."""
    of_each = [_of_document(name, text, number, pattern, find) for number, text in enumerate(documents)]
    in_turn = (example for turn in zip_longest(*of_each) for example in turn if example is not None)
    return tuple(islice(in_turn, count))


def _of_document(name: str, text: str, number: int, pattern: re.Pattern[str], find: Find) -> Iterator[Example]:
    """Examples at drawn places of a document, made as they are asked for."""
    random_ = seeded(f"{name} {number}")
    places = [match for match in pattern.finditer(text) if match.start() >= LEAST_PASSAGE]
    random_.shuffle(places)
    for found in (find(text, match) for match in places):
        if found is not None and len(found[2]) >= CHOICES - 1:
            prompt, answer, wrong = found
            others = random_.sample(sorted(wrong), CHOICES - 1)
            yield Example(prompt, answer, numbered_choices(random_, answer, others), number)
