"""Which layers of a teacher find a fact in a long text: those that `model.attention_at` of its student should name.

Usage: python -m experiments.attending CACHE HELD_OUT [--task needle-1k] [--examples 10] [--most 10] [--json FILE]

CACHE carries its teacher's body; HELD_OUT gives the text around the facts. The student is `hybrid` before training.
First each layer alone has its window while all others keep their attention; then the layers that cost the most keep it
alone, from two of them up. What is measured is the log-probability of a number of five digits that a sentence gives and
the end of the text asks for, and how often each of its tokens is the likeliest. What the window sees does not count.
"""

import argparse
import itertools
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from types import MethodType
from typing import NamedTuple

import torch

from delta_common.command import run_command
from delta_common.files import write_atomically
from delta_common.progress import ProgressLine
from experiments.results.markdown import markdown_table
from student.evaluate.tasks.held_out_text import documents_of_caches
from student.evaluate.tasks.needle import DEPTHS, LENGTHS, needle
from student.inference.tokenizer import encode_prompt, load_tokenizer
from student.model.shape import StudentSettings
from student.model.transplant.attention import Attention
from student.model.transplant.mixer import Mixer
from student.model.transplant.options import mixer_shape
from student.model.transplant.student import TransplantStudent, build_transplant
from student.run.student import frozen_weights_of, teacher_body
from teacher_cache.read.cache import Cache, open_cache


class Found(NamedTuple):
    """Over several texts."""

    log_probability: float
    """Of the number, in nats, on average."""
    right: float
    """Share of numbers of which every token is the likeliest."""


class Search(NamedTuple):
    """What is found with layers that attend."""

    all: Found
    none: Found
    without: list[float]
    """The log-probability where each layer alone has its window."""
    alone: dict[tuple[int, ...], Found]
    """By the layers that attend alone."""


class Text(NamedTuple):
    """In tokens."""

    prompt: list[int]
    number: list[int]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", help="a cache with teacher.carry: body")
    parser.add_argument("held_out", help="a cache of held-out text")
    parser.add_argument("--task", choices=list(LENGTHS), default="needle-1k", help="how long the texts are")
    parser.add_argument("--examples", type=int, default=10)
    parser.add_argument("--most", type=int, default=10, help="layers that keep their attention at most")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    raise SystemExit(run_command("attending", lambda: _run(arguments)))


def _run(arguments: argparse.Namespace) -> int:
    cache = open_cache(arguments.cache)
    student = hybrid_before_training(cache)
    texts = facts(cache, arguments.held_out, arguments.task, arguments.examples)
    found = search(student, texts, arguments.most)
    print(table(found))
    if arguments.json is not None:
        alone = [{"attention_at": layers, **each._asdict()} for layers, each in found.alone.items()]
        written = {"all": found.all._asdict(), "none": found.none._asdict(), "without": found.without, "alone": alone}
        write_atomically(arguments.json, json.dumps(written, indent=1).encode())
    return 0


def table(found: Search) -> str:
    """What is found by which layers, in Markdown."""
    named = {"all": found.all, "none": found.none} | {str(list(keys)): each for keys, each in found.alone.items()}
    rows = [[name, f"{each.log_probability:.2f}", f"{each.right:.0%}"] for name, each in named.items()]
    return markdown_table(["layers that attend", "log p of the number", "found"], rows)


def hybrid_before_training(cache: Cache) -> TransplantStudent:
    """The student of `model.preset: hybrid` as it begins, in float32."""
    settings = StudentSettings(preset="hybrid")
    config, body = teacher_body(settings, cache)
    student = build_transplant(config, frozen_weights_of(cache), body, mixer_shape(settings), seed=0)
    return student.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def facts(cache: Cache, held_out: str, task: str, count: int) -> list[Text]:
    """Texts with a fact in each, at all depths but the last."""
    assert cache.tokenizer_folder is not None, "a cache with its teacher's body has its tokenizer"
    tokenizer = load_tokenizer(cache.tokenizer_folder, None)
    examples = needle(task, tokenizer, count, documents_of_caches([held_out]) or ()).examples
    return [
        Text(encode_prompt(tokenizer, each.prompt), tokenizer(each.answer, add_special_tokens=False)["input_ids"])
        for number, each in enumerate(examples)
        if DEPTHS[number % len(DEPTHS)] < 1
    ]


def search(student: TransplantStudent, texts: Sequence[Text], most: int) -> Search:
    """What is found with all layers attending and with none, without each of them, and with the best ones alone."""
    every, counted = range(len(student.layers)), itertools.count(1)
    with ProgressLine("layers", len(every) + most + 1) as line:

        def measured(layers: Collection[int]) -> Found:
            keep_attention(student, layers)
            found = read(student, texts)
            line.update(next(counted), f"{len(layers)} attend")
            return found

        whole, none = measured(every), measured(())
        without = [measured([other for other in every if other != layer]).log_probability for layer in every]
        order = sorted(every, key=lambda layer: without[layer])
        best = [tuple(sorted(order[:count])) for count in range(2, most + 1)]
        return Search(whole, none, without, {layers: measured(layers) for layers in best})


def keep_attention(student: TransplantStudent, layers: Collection[int]) -> None:
    """Have these layers attend to everything, and the others mix."""
    for number, layer in enumerate(student.layers):
        mixer = layer.get_submodule("self_attn")
        as_what = Attention if number in layers else Mixer
        object.__setattr__(mixer, "mix", MethodType(as_what.mix, mixer))


@torch.no_grad()
def read(student: TransplantStudent, texts: Sequence[Text]) -> Found:
    """How well the student knows the number at the end of each text."""
    device, total, right = student.embedding.device, 0.0, 0
    for prompt, number in texts:
        hidden_states = student(torch.tensor([[*prompt, *number]], device=device))[0, len(prompt) - 1 : -1]
        log_probabilities, wanted = student.logits(hidden_states).log_softmax(-1), torch.tensor(number, device=device)
        total += float(log_probabilities.gather(1, wanted[:, None]).sum())
        right += bool((log_probabilities.argmax(-1) == wanted).all())
    return Found(total / len(texts), right / len(texts))


if __name__ == "__main__":
    main()
