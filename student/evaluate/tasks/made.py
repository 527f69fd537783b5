"""Tasks made from a seed alone: arithmetic, and copying a list."""

import random
from collections.abc import Sequence

from student.evaluate.tasks.examples import Example, Task

SEED = 0
SHOWN = 4
"""Sums worked out before the one that is asked."""
LIST_LENGTHS = (8, 16, 32)
REPEATED = 4
"""Words of a list that are given again before it must go on, and words that it then must go on by."""
CHOICES = 4

WORDS = """
apple bridge candle desert engine forest garden hammer island jacket kettle ladder market needle orange pencil
rabbit saddle tunnel valley window yellow basket castle dragon eagle feather guitar harbor jungle kitchen
lemon mirror nature ocean palace quarter river silver temple uncle village winter bottle camera doctor energy
finger golden honey insect jewel knight letter monkey number office picture queen rocket school table
""".split()  # noqa: SIM905 - as many lines as a list
"""Common English words."""


def seeded(name: str) -> random.Random:
    """Random numbers that are the same each time for the same name."""
    return random.Random(f"{name} {SEED}")  # noqa: S311 - not for secrets


def arithmetic(count: int) -> Task:
    """Sums and differences of numbers up to 20 after four that are worked out, such as `7 + 5 = 12`.

    The wrong choices are 1, 2 or 10 away.
    """
    random_ = seeded("arithmetic")
    return Task("arithmetic", tuple(_sum(random_, number) for number in range(count)))


def copying(count: int) -> Task:
    """Lists of 8, 16 or 32 words that begin again: the next four are asked for.

    The wrong choices are four other words of the list, the right ones backwards, and with their first word last.
    """
    random_ = seeded("copying")
    lengths = [LIST_LENGTHS[number % len(LIST_LENGTHS)] for number in range(count)]
    return Task("copying", tuple(_list(random_, length, number) for number, length in enumerate(lengths)))


def numbered_choices(random_: random.Random, answer: str, others: Sequence[str]) -> tuple[str, ...]:
    """The answer among three others, in drawn order."""
    choices = [answer, *others[: CHOICES - 1]]
    random_.shuffle(choices)
    return tuple(choices)


def _sum(random_: random.Random, number: int) -> Example:
    shown = [_worked_out(random_) for _ in range(SHOWN)]
    question, result = _worked_out(random_)
    prompt = "\n".join([*(f"{asked} {known}" for asked, known in shown), question])
    near = [result + away for away in (-10, -2, -1, 1, 2, 10) if result + away >= 0]
    others = [f" {wrong}" for wrong in random_.sample(near, CHOICES - 1)]
    return Example(prompt, f" {result}", numbered_choices(random_, f" {result}", others), number)


def _worked_out(random_: random.Random) -> tuple[str, int]:
    one, two = sorted((random_.randint(1, 20), random_.randint(1, 20)), reverse=True)
    return (f"{one} + {two} =", one + two) if random_.random() < 0.5 else (f"{one} - {two} =", one - two)


def _list(random_: random.Random, length: int, number: int) -> Example:
    words = random_.sample(WORDS, length)
    first = random_.randrange(length - 2 * REPEATED + 1) if length > 2 * REPEATED else 0
    begun, rest = words[first : first + REPEATED], words[first + REPEATED : first + 2 * REPEATED]
    prompt = f"The list: {', '.join(words)}.\nAgain from {words[first]}: {', '.join(begun)},"
    return Example(prompt, _joined(rest), _orders(random_, rest, words), number)


def _orders(random_: random.Random, rest: list[str], words: list[str]) -> tuple[str, ...]:
    others = [word for word in words if word not in rest][-REPEATED:]
    wrong = [others, rest[::-1], [*rest[1:], rest[0]]]
    return numbered_choices(random_, _joined(rest), [_joined(each) for each in wrong])


def _joined(words: Sequence[str]) -> str:
    return " " + ", ".join(words)
