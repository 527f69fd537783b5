"""`student-eval --tasks`: a student on tasks, beside its teacher, as tables or JSON."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from delta_common.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from student.evaluate.bootstrap import Interval
    from student.evaluate.tasks.suite import Measured
    from student.evaluate.tasks.writing import Written


@dataclass(frozen=True)
class Options:
    """What `student-eval` was told beside the names of tasks."""

    teacher: str | None
    cache: str | None
    corpus: str | None
    limit: int | None


def print_tasks(path: Path, names: str, options: Options, *, json: bool) -> None:
    """Measure, and print tables or JSON."""
    from delta_common.console import print_json, print_tables

    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise UserError("--tasks: no name in it; give all, or names such as arithmetic,needle-4k,writing")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: give 1 or more")
    found = _measure(path, wanted, options)
    if json:
        print_json({"student": str(path)} | asdict(found))
        return
    tables = [_table(found, path)] if found.tasks else []
    print_tables(*tables, *([_writing_table(found.writing)] if found.writing else []), *_notes(found))


def _measure(path: Path, names: Sequence[str], options: Options) -> "Measured":
    import torch

    from student.evaluate.tasks.suite import measure_tasks, takes_text
    from student.evaluate.tasks.teacher import known_teacher, load_beside
    from student.evaluate.trained import load_any_writer

    student = load_any_writer(path, torch.accelerator.current_accelerator() or torch.device("cpu"))
    documents = _documents(path, options) if takes_text(names) else None
    teacher = load_beside(known_teacher(path), options.teacher, student)
    return measure_tasks(student, teacher, names, documents, limit=options.limit, say=_say)


def _say(what: str) -> None:
    print(f"measuring {what}", file=sys.stderr, flush=True)


def _documents(path: Path, options: Options) -> list[str] | None:
    """Held-out text: of `--corpus`, of `--cache`, or of the caches that a run was measured on; else None."""
    from student.evaluate.corpus_text import documents_of_corpus
    from student.evaluate.tasks.held_out_text import documents_of_caches, first_texts
    from student.inference.load import is_export
    from student.run.files import read_settings

    if options.corpus is not None:
        return first_texts(documents_of_corpus(options.corpus))
    if options.cache is not None:
        return documents_of_caches([options.cache])
    if is_export(path):
        return None
    paths = read_settings(path).evaluation.paths
    return documents_of_caches(paths) if paths else None


def _table(found: "Measured", path: Path) -> "Table":
    from rich.table import Table

    table = Table(title=f"tasks: {path}", title_justify="left")
    table.add_column("task", no_wrap=True)
    table.add_column("by", no_wrap=True)
    for name in ("examples", "chance", "student", "the teacher", "recovery"):
        table.add_column(name, justify="right")
    for each in found.tasks:
        cells = [_cell(score) for score in (each.student, each.teacher, each.recovery)]
        chance = "–" if each.chance is None else f"{each.chance:.0%}"
        table.add_row(each.task, each.measure, f"{each.examples:,}", chance, *cells)
    return table


def _writing_table(found: "Sequence[Written]") -> "Table":
    from rich.table import Table

    table = Table(title="writing, judged by the teacher", title_justify="left")
    table.add_column("by", no_wrap=True)
    table.add_column("tokens", no_wrap=True)
    for name in ("texts", "tokens per text", "perplexity", "repeated 4-grams"):
        table.add_column(name, justify="right")
    for each in found:
        cells = (_cell(each.perplexity, "{:,.1f}"), _cell(each.repetition))
        table.add_row(each.by, each.way or "–", f"{each.texts}", f"{each.tokens_per_text:.0f}", *cells)
    return table


def _cell(found: "Interval | None", form: str = "{:.1%}") -> str:
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return form.format(found.value)
    return f"{form.format(found.value)}\n{form.format(found.low)} … {form.format(found.high)}"


def _notes(found: "Measured") -> list[str]:
    notes = []
    if found.tasks:
        notes.append(
            "likelihood: the right choice is the likeliest. generation: the likeliest text begins with the answer.\n"
            "Intervals are 95 %, over examples, or over the documents that they are made of."
        )
    if not found.has_teacher:
        notes.append("The folder does not say who its teacher was; --teacher measures one beside it.")
    elif any(each.teacher is None or each.student is None for each in found.tasks):
        notes.append("–: the task's texts are longer than the model's context.")
    return notes
