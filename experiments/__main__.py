"""All experiments in one command, which continues where it was stopped.

Usage: python -m experiments FOLDER [--rows 400 --epochs 2 --batch 4 --seeds 3 --jobs 1 --parts 1 2 3 4] [...]

Builds the caches, times the steps of CE alone, cached and online distillation in turns, trains every
variant with every seed in a process of its own, and writes FOLDER/tables.md and FOLDER/accounts.png.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from delta_common.command import run_command
from delta_common.errors import UserError
from delta_common.files import write_atomically
from experiments.caches import build_caches
from experiments.options import harness_parser, place_of_teacher, seeds_of, train_options
from experiments.plan import ExperimentPlan, Folder
from experiments.pool import Task, run_tasks
from experiments.results.plot import plot_accounts
from experiments.results.tables import page, read_sheet
from experiments.variants import TABLES, all_variants

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Entry point."""
    sys.exit(run_command("experiments", lambda: _run(_parser().parse_args())))


def _parser() -> argparse.ArgumentParser:
    parser = harness_parser(__doc__, trained="variant")
    add = parser.add_argument
    add("--corpus", help="folder with train.parquet and heldout.parquet; default: Python's documentation, made here")
    add("--seq-len", type=int, default=128, help="tokens per row")
    add("--rows", type=int, default=400, help="rows trained on")
    add("--held-out", type=int, default=48, help="rows measured on")
    add("--epochs", type=int, default=2, help="passes over the rows")
    add("--batch", type=int, default=4, help="rows per step")
    add("--parts", type=int, nargs="+", default=[1, 2, 3, 4], help="parts of the list to train, where not --only")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    folder = Folder(arguments.folder.resolve())
    if arguments.tables:
        return _write_tables(folder)
    names, started = _names(arguments), time.monotonic()
    plan = ExperimentPlan(
        teacher=place_of_teacher(arguments.teacher),
        corpus=None if arguments.corpus is None else str(Path(arguments.corpus).resolve()),
        seq_len=arguments.seq_len,
        rows=arguments.rows,
        held_out=arguments.held_out,
        epochs=arguments.epochs,
        batch=arguments.batch,
        options=train_options(arguments),
    )
    folder.settle(plan)
    build_caches(folder, plan)
    from experiments.teacher import write_teacher_scores

    write_teacher_scores(folder)
    if any(all_variants()[name].as_long_as for name in names) and not folder.timing.exists():
        subprocess.run([sys.executable, "-m", "experiments.worker", str(folder.path)], cwd=ROOT, check=True)  # noqa: S603
    left = 60 * arguments.minutes - (time.monotonic() - started)
    # Seed by seed, so that whatever is there when time runs out can be compared.
    tasks = [Task(folder, name, seed) for seed in seeds_of(arguments) for name in names]
    failed = run_tasks(tasks, arguments.jobs, left)
    _write_tables(folder)
    for task in failed:
        print(f"experiments: {task.variant}, seed {task.seed} failed; see {task.out / 'log.txt'}", file=sys.stderr)
    return 1 if failed else 0


def _names(arguments: argparse.Namespace) -> list[str]:
    if arguments.only is None:
        wanted = [table for table in TABLES if table.part in arguments.parts]
        return list(dict.fromkeys(variant.name for table in wanted for variant in table.variants))
    unknown = [name for name in arguments.only if name not in all_variants()]
    if unknown:
        raise UserError(f"--only {unknown[0]}: no such variant; there are {', '.join(all_variants())}")
    return list(arguments.only)


def _write_tables(folder: Folder) -> int:
    sheet, file, plot = read_sheet(folder), folder.path / "tables.md", folder.path / "accounts.png"
    write_atomically(file, page(sheet).encode())
    print(file)
    if plot_accounts(sheet, plot):
        print(plot)
    return 0


if __name__ == "__main__":
    main()
