"""Made tasks are the same each time, right, and not to be had by a rule that knows no sum and no list."""

import re
from collections.abc import Callable

import pytest

from student.evaluate.tasks.examples import Task
from student.evaluate.tasks.made import arithmetic, copying


@pytest.mark.parametrize("make", [arithmetic, copying])
def test_a_task_is_the_same_each_time_and_a_shorter_one_its_beginning(make: Callable[[int], Task]) -> None:
    task = make(40)
    assert task == make(40)
    assert make(10).examples == task.examples[:10]
    assert len({example.prompt for example in task.examples}) == 40
    assert len({example.group for example in task.examples}) == 40
    for example in task.examples:
        assert len(set(example.choices)) == 4
        assert example.answer in example.choices
        assert not example.prompt.endswith(" ")
    places = [example.choices.index(example.answer) for example in task.examples]
    assert set(places) == {0, 1, 2, 3}


def test_sums_are_right() -> None:
    sizes = []
    for example in arithmetic(100).examples:
        *shown, question = example.prompt.split("\n")
        assert len(shown) == 4
        for line in [*shown, question + example.answer]:
            one, sign, two, result = re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", line).groups()  # type: ignore[union-attr]
            assert int(one) + (int(two) if sign == "+" else -int(two)) == int(result)
        sizes.append(sorted(map(int, example.choices)).index(int(example.answer)))
    assert max(map(sizes.count, range(4))) < 60, "neither the smallest choice nor the largest is mostly right"


def test_a_list_goes_on_as_it_stood() -> None:
    for example in copying(30).examples:
        listed, again = example.prompt.split("\n")
        assert again.partition(": ")[2] + example.answer in listed
        assert all(word in listed for choice in example.choices for word in choice.strip().split(", "))
