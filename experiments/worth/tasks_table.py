"""What students can do, as tables beside their teacher: tasks, and writing that the teacher judges."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.results.markdown import markdown_table
from experiments.worth.plan import WorthFolder
from experiments.worth.students import KINDS, Kind

Score = Mapping[str, Any] | None


def tasks_tables(folder: WorthFolder, kinds: Sequence[Kind] = KINDS) -> list[str]:
    """Both tables of these students; nothing where no tasks were measured. Intervals are those of `student-eval`."""
    known = folder.tasks()
    found = {kind.name: known[kind.name] for kind in kinds if kind.name in known}
    return [_tasks(found), _writing(found)] if found else []


def _tasks(found: Mapping[str, Any]) -> str:
    columns = {name: {(each["task"], each["measure"]): each for each in of["tasks"]} for name, of in found.items()}
    rows = []
    for at, first in next(iter(columns.values())).items():
        scores = [column[at]["student"] if at in column else None for column in columns.values()]
        rows.append([*at, f"{first['examples']}", _share(first["teacher"]), *map(_share, scores)])
    title = "**What they can do**, with 95 % intervals over examples; one training each"
    return f"{title}\n\n{markdown_table(['task', 'by', 'examples', 'the teacher', *columns], rows, words=(0, 1))}"


def _writing(found: Mapping[str, Any]) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for name, of in found.items():
        for each in of["writing"]:
            by = name if each["by"] == "student" else each["by"]
            rows[by, each["way"]] = [_number(each["perplexity"]), _share(each["repetition"])]
    heads = ["writing, judged by the teacher", "tokens", "perplexity", "repeated 4-grams"]
    return markdown_table(heads, [[by, way or "–", *cells] for (by, way), cells in rows.items()], words=(0, 1))


def _share(score: Score) -> str:
    return "–" if score is None else _words(score, "{:.0%}")


def _number(score: Score) -> str:
    return "–" if score is None else _words(score, "{:.1f}")


def _words(score: Mapping[str, Any], form: str) -> str:
    ends = [score["low"], score["high"]]
    return form.format(score["value"]) + ("" if None in ends else f" ({form.format(ends[0])}–{form.format(ends[1])})")
