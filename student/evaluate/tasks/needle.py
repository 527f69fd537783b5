"""A fact in a long text that is asked for at its end: for lengths from 512 to 16,384 tokens, at several depths."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from student.evaluate.tasks.examples import Example, Task
from student.evaluate.tasks.made import CHOICES, WORDS, numbered_choices, seeded
from student.inference.tokenizer import encode_prompt

LENGTHS = {
    "needle-512": 512,
    "needle-1k": 1024,
    "needle-2k": 2048,
    "needle-4k": 4096,
    "needle-8k": 8192,
    "needle-16k": 16384,
}
"""Most tokens of prompt and answer together, by the name of the task."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Share of the text that stands before the fact."""
SENTENCE = re.compile(r"(?<![^\s])[A-Z][^\n.!?]{20,240}[.!?](?=\s)")
"""What is taken from documents: a sentence on a line."""
LEAST_SENTENCES = 50


@dataclass(frozen=True)
class Filler:
    """Sentences, and the tokens that each takes."""

    sentences: Sequence[str]
    sizes: Sequence[int]

    def take(self, first: int, tokens: int) -> list[str]:
        """Sentences from number `first` on, around the end, that take at most so many tokens."""
        taken: list[str] = []
        while (tokens := tokens - self.sizes[first % len(self.sizes)]) >= 0:
            taken.append(self.sentences[first % len(self.sizes)])
            first += 1
        return taken


def needle(name: str, tokenizer: PreTrainedTokenizerBase, count: int, documents: Sequence[str] = ()) -> Task:
    """`count` texts of at most the length that the name says, in the tokenizer's tokens.

    Each has a sentence such as "The secret number of the harbor is 52817." among sentences of the documents or, where
    these have too few, made ones. The wrong choices are numbers that stand nowhere in it. Depths take turns.
    """
    sentences = _sentences(documents)
    encoded = tokenizer([f" {sentence}" for sentence in sentences], add_special_tokens=False, verbose=False)
    filler = Filler(sentences, [len(tokens) for tokens in encoded["input_ids"]])
    random_ = seeded(name)
    return Task(name, tuple(_example(tokenizer, filler, LENGTHS[name], random_, number) for number in range(count)))


def _example(
    tokenizer: PreTrainedTokenizerBase, filler: Filler, length: int, random_: random.Random, number: int
) -> Example:
    depth, of = DEPTHS[number % len(DEPTHS)], random_.choice(WORDS)
    values = [f" {value}" for value in random_.sample(range(10_000, 100_000), CHOICES)]
    asked = f"The secret number of the {of} is"
    taken = filler.take(random_.randrange(len(filler.sentences)), length)
    while True:
        place = round(depth * len(taken))
        text = " ".join([*taken[:place], f"{asked}{values[0]}.", *taken[place:]])
        prompt = f"{text}\n\n{asked}"
        over = len(encode_prompt(tokenizer, prompt)) + max(len(_tokens(tokenizer, value)) for value in values) - length
        if over <= 0 or not taken:
            return Example(prompt, values[0], numbered_choices(random_, values[0], values[1:]), number)
        taken = taken[: -max(1, over // max(filler.sizes))]


def _sentences(documents: Sequence[str]) -> list[str]:
    found = [sentence for text in documents for sentence in SENTENCE.findall(text)]
    return found if len(found) >= LEAST_SENTENCES else _made_sentences()


def _made_sentences() -> list[str]:
    random_ = seeded("filler")
    forms = (
        "The {} stood beside the {} until the {} was repaired.",
        "Nobody had seen a {} near the {} since the {} opened.",
        "In the morning a {} was carried from the {} to the {}.",
        "They spoke of the {}, the {} and the {} for an hour.",
    )
    return [random_.choice(forms).format(*random_.sample(WORDS, 3)) for _ in range(200)]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tokens
