"""What the cache and its students are worth: many students on one cache, by the commands that users run.

Usage: python -m experiments.worth FOLDER --corpus CORPUS [--rows 39072 --seeds 3 --jobs 3 --minutes M --only NAMES]

Builds the caches, times each student alone, trains every student with every seed, measures what some of them can do,
and writes FOLDER/worth.md and FOLDER/worth.png. Run again it continues: FOLDER/results has a few KB per training and
may be carried to other machines; results of another version of the code are refused.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from delta_common.command import run_command
from delta_common.errors import UserError
from delta_common.files import write_atomically
from experiments.options import FIRST_SEED, harness_parser, place_of_teacher, seeds_of, train_options
from experiments.pool import run_tasks
from experiments.worth.caches import build_caches
from experiments.worth.curves import plot_curves
from experiments.worth.page import page
from experiments.worth.plan import WorthFolder, WorthPlan
from experiments.worth.students import KINDS, Kind
from experiments.worth.timing import Timing
from experiments.worth.training import Training


def main() -> None:
    """Entry point."""
    sys.exit(run_command("worth", lambda: _run(_parser().parse_args())))


def _parser() -> argparse.ArgumentParser:
    parser = harness_parser(__doc__, trained="student")
    add = parser.add_argument
    add("--corpus", type=Path, help="folder with train.parquet and held_out.parquet, of tools/make_docs_corpus.py")
    add("--seq-len", type=int, default=512, help="tokens per row")
    add("--rows", type=int, default=39_072, help="rows trained on, each once: 20 million tokens")
    add("--held-out", type=int, default=128, help="rows measured on")
    add("--points", type=int, default=20, help="measurements in a training")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    folder, started = WorthFolder(arguments.folder.resolve()), time.monotonic()
    kinds = _kinds(arguments.only)
    if arguments.tables:
        return _write_page(folder, kinds)
    if arguments.corpus is None:
        raise UserError("--corpus: missing; make one with tools/make_docs_corpus.py FOLDER, and name that folder")
    plan = WorthPlan(
        teacher=place_of_teacher(arguments.teacher),
        corpus=str(arguments.corpus.resolve()),
        seq_len=arguments.seq_len,
        rows=arguments.rows,
        held_out=arguments.held_out,
        points=arguments.points,
        options=train_options(arguments),
    )
    folder.settle(plan)
    build_caches(folder, plan, {kind.cache for kind in kinds})
    timings = [Timing(Training(folder, plan, kind, FIRST_SEED)) for kind in kinds]
    failed = [timing.words for timing in run_tasks(timings, max(1, torch.cuda.device_count()))]
    # Seed by seed, so that whatever is there when time runs out can be compared.
    trainings = [Training(folder, plan, kind, seed) for seed in seeds_of(arguments) for kind in kinds]
    left = 60 * arguments.minutes - (time.monotonic() - started)
    failed += [training.words for training in run_tasks(trainings, arguments.jobs, left)]
    for words in failed:
        print(f"worth: {words}: failed; see the logs in {folder.path / 'runs'}", file=sys.stderr)
    return _write_page(folder, kinds) or bool(failed)


def _kinds(names: list[str] | None) -> list[Kind]:
    by_name = {kind.name: kind for kind in KINDS}
    unknown = [name for name in names or () if name not in by_name]
    if unknown:
        raise UserError(f"--only {unknown[0]}: no such student; there are {', '.join(by_name)}")
    return [by_name[name] for name in names or by_name]


def _write_page(folder: WorthFolder, kinds: list[Kind]) -> int:
    text, picture = folder.path / "worth.md", folder.path / "worth.png"
    write_atomically(text, page(folder, kinds).encode())
    print(text)
    if plot_curves(folder, picture, kinds):
        print(picture)
    return 0


if __name__ == "__main__":
    main()
