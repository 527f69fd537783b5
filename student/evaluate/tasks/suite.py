"""Tasks by their names, and a student measured on them beside its teacher: what `student-eval --tasks` does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from delta_common.errors import UserError
from student.evaluate.tasks import made, needle
from student.evaluate.tasks.answers import Scores, answer, fits
from student.evaluate.tasks.examples import Task, read_task
from student.evaluate.tasks.harness import YAML, harness_scores, require_lm_eval
from student.evaluate.tasks.held_out_text import api_names, cloze
from student.evaluate.tasks.recovery import Compared, compare, compared
from student.evaluate.tasks.writing import Written, beginnings, judged, judged_text
from student.inference.load import Writer

OF_SEED = {"arithmetic": made.arithmetic, "copying": made.copying}
OF_TEXT = {"cloze": cloze, "names": api_names}
NEEDLE, WRITING, ALL = "needle", "writing", "all"
EXAMPLES = 100
"""Examples of a task unless told otherwise."""
NEEDLES, TEXTS = 20, 32
"""Fewer of those that take longest: texts of a length that hold a fact, and beginnings to write on from."""

Said = Callable[[str], None]
"""Is told what is measured next."""


@dataclass(frozen=True)
class Measured:
    """A student on tasks, beside its teacher."""

    tasks: list[Compared]
    writing: list[Written]
    """Empty where it was not asked for."""
    has_teacher: bool


@dataclass(frozen=True)
class Asked:
    """What is to be measured: tasks of our own, whether to judge writing, and names that are lm-eval's."""

    tasks: list[Task]
    writing: bool
    others: list[str]


def asked_for(names: Sequence[str], writer: Writer, documents: Sequence[str] | None, limit: int | None = None) -> Asked:
    """Tasks by name, of at most `limit` examples each.

    Args:
        names: `arithmetic`, `copying`, `cloze`, `names`, `needle` or one of its lengths such as `needle-4k`, `writing`;
            `all` for all of these that can be made; files of JSON lines; names of tasks of lm-eval.
        writer: whose tokenizer measures lengths.
        documents: held-out text, for `cloze`, `names`, `writing` and the filler of needles; None where there is none.
        limit: 100 by default, of needles 20 per length, of texts to write 32.

    Raises `UserError` for a task that needs text where there is none, or too little.
    """
    wanted = _spelled_out(names, has_text=documents is not None)
    tasks, others = [], []
    for name in wanted:
        if name == WRITING:
            _require_text(name, documents)
        elif (task := _task(name, writer, documents, limit)) is None:
            others.append(name)
        else:
            tasks.append(task)
    return Asked(tasks, WRITING in wanted, others)


def takes_text(names: Sequence[str]) -> bool:
    """Whether any of these tasks is made of held-out text where there is some."""
    return not {*OF_TEXT, WRITING, *needle.LENGTHS}.isdisjoint(_spelled_out(names, has_text=True))


def scores_of(writer: Writer, tasks: Sequence[Task], say: Said = lambda _: None) -> list[Scores | None]:
    """The scores of a student or a teacher on each task; None where its context is shorter than a task's texts."""
    found: list[Scores | None] = []
    for task in tasks:
        if not fits(writer, task):
            found.append(None)
            continue
        say(task.name)
        found.append(answer(writer, task))
    return found


def compare_all(
    tasks: Sequence[Task], student: Sequence[Scores | None], teacher: Sequence[Scores | None] | None
) -> list[Compared]:
    """Every measure of every task, from what `scores_of` gave for student and teacher; None without a teacher."""
    beside = teacher if teacher is not None else [None] * len(tasks)
    each = zip(tasks, student, beside, strict=True)
    return [found for task, ours, theirs in each for found in compare(task, ours, theirs)]


def measure_tasks(
    student: Writer,
    teacher: Writer | None,
    names: Sequence[str],
    documents: Sequence[str] | None,
    *,
    limit: int | None = None,
    say: Said = lambda _: None,
) -> Measured:
    """A student on the tasks that `asked_for` makes of names, beside its teacher where there is one.

    Raises `UserError` as `asked_for`, where writing has no teacher to judge it, and for names that neither we nor
    lm-eval know.
    """
    asked = asked_for(names, student, documents, limit)
    if asked.others:
        require_lm_eval(asked.others)
    if asked.writing and teacher is None:
        raise UserError("--tasks writing: judged by the teacher, whom the folder does not name; give --teacher")
    # First those that may yet prove to be unknown.
    by_lm_eval = _by_lm_eval(student, teacher, asked.others, limit, say)
    ours = scores_of(student, asked.tasks, say)
    theirs = None if teacher is None else scores_of(teacher, asked.tasks, lambda name: say(f"{name}, the teacher"))
    found = compare_all(asked.tasks, ours, theirs) + by_lm_eval
    if not asked.writing or teacher is None or documents is None:
        return Measured(found, [], teacher is not None)
    return Measured(found, judge_writing(student, teacher, documents, limit, say), has_teacher=True)


def judge_writing(
    student: Writer, teacher: Writer, documents: Sequence[str], limit: int | None = None, say: Said = lambda _: None
) -> list[Written]:
    """What the student writes, what the teacher does, and the held-out text, all under the teacher."""
    begun = beginnings(student, documents, limit or TEXTS)
    found = []
    for by, writer in {"student": student, "teacher": teacher}.items():
        say(f"writing, {by}")
        found += judged(by, writer, teacher, begun)
    return [*found, judged_text(teacher, begun)]


def _by_lm_eval(
    student: Writer, teacher: Writer | None, names: Sequence[str], limit: int | None, say: Said
) -> list[Compared]:
    if not names:
        return []
    say(", ".join(names))
    ours = harness_scores(student, names, limit)
    theirs = {} if teacher is None else harness_scores(teacher, names, limit)
    return [
        compared(name, metric, scores, theirs.get(name, {}).get(metric), range(len(scores)))
        for name, metrics in ours.items()
        for metric, scores in metrics.items()
    ]


def _spelled_out(names: Sequence[str], *, has_text: bool) -> list[str]:
    """`all` and `needle` by the names of their parts, each once, in order."""
    with_text = [*OF_TEXT, WRITING] if has_text else []
    every = [*OF_SEED, *with_text, *needle.LENGTHS]
    parts = {ALL: every, NEEDLE: list(needle.LENGTHS)}
    return list(dict.fromkeys(part for name in names for part in parts.get(name, [name])))


def _task(name: str, writer: Writer, documents: Sequence[str] | None, limit: int | None) -> Task | None:
    """A task of our own; None for a name that is none."""
    if name in OF_SEED:
        return OF_SEED[name](limit or EXAMPLES)
    if name in OF_TEXT:
        return _of_text(name, _require_text(name, documents), limit or EXAMPLES)
    if name in needle.LENGTHS:
        return needle.needle(name, writer.tokenizer, limit or NEEDLES, documents or ())
    path = Path(name).expanduser()
    if path.suffix not in YAML and (path.suffix == ".jsonl" or path.is_file()):
        return read_task(path, limit)
    return None


def _of_text(name: str, documents: Sequence[str], count: int) -> Task:
    task = OF_TEXT[name](documents, count)
    if not task.examples:
        what = {"cloze": "word", "names": "API name"}[name]
        raise UserError(f"--tasks {name}: no {what} stands twice in a held-out passage; give --corpus of more text")
    return task


def _require_text(name: str, documents: Sequence[str] | None) -> Sequence[str]:
    if documents is None:
        raise UserError(f"--tasks {name}: made of held-out text; give --cache HELDOUT or --corpus FILE")
    return documents
