"""The command line of `student-eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App

from delta_common.command import LOCAL_PATH, run_app
from delta_common.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.table import Table

    from delta_common.progress import ProgressLine
    from student.evaluate.held_out import HeldOut, Scores
    from teacher_cache.read.decode import CachedRows

FEW_DOCUMENTS = 20

app = App(name="student-eval")


@app.default
def evaluate(
    student: Annotated[Path, LOCAL_PATH],
    *,
    cache: str | None = None,
    corpus: str | None = None,
    tasks: str | None = None,
    teacher: str | None = None,
    limit: int | None = None,
    json: bool = False,
) -> int:
    """Measure a trained student on held-out text, next to its teacher where a cache holds the teacher's targets.

    With --tasks, measure what it can do instead, next to the teacher itself. Every number has a 95 % interval, from
    resampling documents.

    Parameters
    ----------
    student
        Folder of a finished student-train run, or of a student-export.
    cache
        Folder or URL of a cache of held-out text, built with the same teacher.
    corpus
        Text file, folder or data set to measure without the teacher. It is cut into rows like those of `--cache`, or
        else of the cache trained on.
    tasks
        Names, with commas between: arithmetic, copying, cloze, names (of APIs), needle (a fact in 512 to 16k tokens;
        needle-4k is one length), writing (judged by the teacher), all of these; files of JSON lines with prompt, answer
        and choices; tasks of lm-eval, where it is installed. Held-out text is that of --cache, of --corpus, or else of
        the cache the run was evaluated on.
    teacher
        Where the student's teacher lies: Hub id, folder, GGUF file or package:NAME. By default as the cache names it.
    limit
        At most this many examples per task. By default 100, of a needle 20 per length, of texts to write 32.
    json
        Print JSON instead of a table, including each document's means.
    """
    from delta_common.console import print_json, print_tables
    from student.train.processes import quiet_deepspeed

    if tasks is not None:
        from student.cli.tasks import Options, print_tasks

        with quiet_deepspeed():
            print_tasks(student, tasks, Options(teacher, cache, corpus, limit), json=json)
        return 0
    if teacher is not None or limit is not None:
        raise UserError("--teacher and --limit go with --tasks; add that, or leave them out")
    if cache is None and corpus is None:
        raise UserError("nothing to measure on; give --cache HELDOUT or --corpus FILE")
    with quiet_deepspeed():
        found, subject = _measure(student, cache, corpus)
    if json:
        print_json(_as_json(found, subject))
    else:
        print_tables(_table(found, subject), *_role_tables(found), *_notes(found))
    return 0


def main() -> None:
    """Entry point of the console script."""
    run_app(app)


def _measure(path: Path, cache_path: str | None, corpus: str | None) -> tuple["HeldOut", str]:
    """The measurements, and the name of what they were taken on."""
    import torch

    from delta_common.progress import ProgressLine
    from student.evaluate.corpus_text import text_rows
    from student.evaluate.held_out import measure_held_out, rows_in_order
    from student.evaluate.positions import require_temperature_one
    from student.evaluate.trained import load_student
    from student.inference.load import is_export
    from student.run.files import read_summary
    from teacher_cache.read.cache import open_cache

    if cache_path is None and is_export(path):
        raise UserError(f"{path}: an export does not say how its rows were made; give --cache of the same teacher too")
    cache = open_cache(cache_path or read_summary(path).cache)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    student = load_student(path, cache, device)
    head = student.teacher_head
    if corpus is not None:
        rows = text_rows(corpus, cache, student.rows)
        return measure_held_out(student.model, cache, rows, device, teacher_head=head), corpus
    require_temperature_one(cache, "--cache")
    with ProgressLine("measuring", len(cache)) as line:
        rows = _counted(rows_in_order(cache, student.rows), line)
        return measure_held_out(student.model, cache, rows, device, teacher_head=head), str(cache.path)


def _counted(rows: "Iterable[CachedRows]", line: "ProgressLine") -> "Iterator[CachedRows]":
    done = 0
    for part in rows:
        yield part
        done += len(part.tokens)
        line.update(done, "rows")


def _table(found: "HeldOut", subject: str) -> "Table":
    from rich.table import Table

    from student.run.measure_words import ADAPTIVE_WORDS, MEASURE_WORDS

    extent = f"{found.tokens:,} tokens, {len(found.by_document):,} documents, {found.rows:,} rows"
    table = Table(title=f"held out: {subject}\n{extent}", title_justify="left")
    table.add_column("95 % intervals over documents")
    columns = {"student": found.student} | ({"the teacher": found.teacher} if found.teacher else {})
    for name in columns:
        table.add_column(name, justify="right")
    for name, (words, form) in (MEASURE_WORDS | ADAPTIVE_WORDS).items():
        cells = [_cell(scores, name, form) for scores in columns.values()]
        if any(cells):
            table.add_row(words, *(cell or "–" for cell in cells))
    return table


def _role_tables(found: "HeldOut") -> list["Table"]:
    """The student's means by who speaks; none where only one does."""
    from rich.table import Table

    from student.run.measure_words import MEASURE_WORDS

    if len(found.by_role) < 2:
        return []
    table = Table("the student by who speaks", *found.by_role)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("tokens", *(f"{means['tokens']:,}" for means in found.by_role.values()))
    for name, (words, form) in MEASURE_WORDS.items():
        if all(name in means for means in found.by_role.values()):
            table.add_row(words, *(form.format(means[name]) for means in found.by_role.values()))
    return [table]


def _cell(scores: "Scores", name: str, form: str) -> str:
    interval = getattr(scores, name)
    if interval is None:
        return ""
    words = ("≥ " if interval.at_least else "") + form.format(interval.value)
    if interval.low is None:
        return words
    return f"{words}\n{form.format(interval.low)} … {form.format(interval.high)}"


def _notes(found: "HeldOut") -> list[str]:
    notes = []
    if 1 < len(found.by_document) < FEW_DOCUMENTS:
        notes.append(f"{len(found.by_document)} documents are few: the intervals are rough, and probably too narrow.")
    if found.student.kl is not None and found.student.kl.at_least:
        notes.append("KL is a lower bound: this cache keeps the top_k and one bucket for all others.")
    teacher = found.teacher and found.teacher.cross_entropy
    if teacher and teacher.low is None and len(found.by_document) > 1:
        notes.append(
            "The teacher's cross-entropy is a lower bound: some next tokens were not kept."
            if teacher.at_least
            else "The teacher's cross-entropy is the mean over the whole cache and has no interval, because some next "
            "tokens were not kept."
        )
    return notes


def _as_json(found: "HeldOut", subject: str) -> dict[str, object]:
    from dataclasses import asdict

    return {"measured_on": subject} | asdict(found)
