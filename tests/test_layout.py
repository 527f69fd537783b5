"""The house keeps its rooms: what may import what, tests beside what they test, and sizes that can be read."""

import ast
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("delta_common", "teacher_cache", "student", "cached_distillation")
PROGRAMS = (*PACKAGES, "experiments", "benchmarks", "tools")
MIRRORED = (*PACKAGES, "experiments")

MOST_FILES = 12
MOST_LINES = 400
LONGEST_FUNCTION = 50
LONGEST_COMMAND = 60
"""Of a function whose docstring is the help text of a command."""
MEAN_FUNCTION = 10
MOST_LINES_WITH_ANY = 140

BUILDER, TRAINER = "data flows one way through the builder", "and one way through the trainer"
CIRCLES = "no two rooms, and no two files of a room, import each other in a circle"
BUILDER_ALONE = "the builder does not know the student"
READER_ONLY = "the student knows the cache by its reader, its format and its estimator only"
EXPORT_ALONE = "an export loads and writes without the cache and the trainer"
ANY_LOOP = "and one way to a loop of one's own"
ANY_LOOP_READS = "a loop of one's own knows the cache by its reader and the student by its batches and its loss only"
NOT_KNOWN = "and neither of them knows it"
SHARED_ALONE = "what both share knows neither"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the packages' Python files and of the rules."""
    copy = tmp_path_factory.mktemp("house")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=_all_but_python)
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


def _all_but_python(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".py") and not (Path(folder) / name).is_dir()]


def broken_rules(house: Path) -> tuple[list[str], str]:
    """Contracts that lint-imports calls broken, and all that it prints."""
    command = [Path(sys.executable).with_name("lint-imports")]
    environment = {**os.environ, "PYTHONPATH": str(house), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=house, env=environment, capture_output=True, text=True)
    broken = [line.partition(" BROKEN")[0] for line in done.stdout.splitlines() if " BROKEN" in line]
    assert (done.returncode != 0) == bool(broken), done.stdout + done.stderr
    return broken, done.stdout


def test_the_house_is_in_order(house: Path) -> None:
    broken, printed = broken_rules(house)
    assert broken == []
    assert "Contracts: 10 kept, 0 broken." in printed


@pytest.mark.parametrize(
    ("path", "imported", "rules"),
    [
        ("student/model/bad.py", "teacher_cache.build.job", {READER_ONLY, EXPORT_ALONE}),
        ("student/data/bad.py", "student.train.loop", {TRAINER, CIRCLES}),
        ("student/report/bad.py", "student.export.write", {TRAINER}),
        ("teacher_cache/corpus/bad.py", "teacher_cache.read.cache", {BUILDER}),
        ("student/inference/bad.py", "student.settings", {TRAINER, EXPORT_ALONE}),
        ("teacher_cache/format/bad.py", "teacher_cache.read.cache", {BUILDER, CIRCLES}),
        ("teacher_cache/cli_two.py", "student.loss.naive", {BUILDER, BUILDER_ALONE}),
        ("delta_common/bad.py", "student.settings", {SHARED_ALONE}),
        ("student/newroom/__init__.py", "student.data.order", {TRAINER}),
        ("cached_distillation/head_two.py", "student.train.loop", {ANY_LOOP, ANY_LOOP_READS}),
        ("student/data/bad.py", "cached_distillation.batch", {TRAINER, NOT_KNOWN}),
        ("teacher_cache/newroom/__init__.py", "teacher_cache.format.keys", {BUILDER}),
    ],
)
def test_a_file_where_it_may_not_be_breaks_its_rules(house: Path, path: str, imported: str, rules: set[str]) -> None:
    file = house / path
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"import {imported}\n")
    try:
        broken, printed = broken_rules(house)
    finally:
        file.unlink()
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    assert set(broken) == rules, printed
    assert path.rpartition("/")[0].replace("/", ".") in printed


def python_files(*roots: str) -> list[Path]:
    return [path for root in roots for path in sorted((ROOT / root).rglob("*.py"))]


def modules(*packages: str) -> set[Path]:
    """Modules that need a test, as paths from the root."""
    files = python_files(*packages)
    return {file.relative_to(ROOT) for file in files if file.name not in ("__init__.py", "__main__.py")}


def mirrored(module: Path) -> Path:
    return Path("tests") / module.parent / f"test_{module.name}"


def test_every_module_has_its_test_at_its_place() -> None:
    missing = [str(module) for module in sorted(modules(*MIRRORED)) if not (ROOT / mirrored(module)).is_file()]
    assert not missing, "\n".join(missing)


def test_every_test_of_a_package_is_at_the_place_of_a_module() -> None:
    places = {mirrored(module) for module in modules(*MIRRORED)}
    found = {test.relative_to(ROOT) for name in MIRRORED for test in (ROOT / "tests" / name).rglob("test_*.py")}
    assert sorted(map(str, found - places)) == []


def test_no_folder_is_too_full() -> None:
    counts = Counter(str(file.parent.relative_to(ROOT)) for file in python_files(*PROGRAMS))
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_no_file_is_too_long() -> None:
    lengths = {str(file.relative_to(ROOT)): len(_source(file).splitlines()) for file in python_files(*PROGRAMS)}
    assert {file: length for file, length in lengths.items() if length > MOST_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {}
    for file in python_files(*PROGRAMS):
        allowed = LONGEST_COMMAND if "cli" in file.relative_to(ROOT).with_suffix("").parts else LONGEST_FUNCTION
        for name, length in function_lengths(file):
            if length > allowed and not file.name.endswith("_triton.py"):
                lengths[f"{file.relative_to(ROOT)}:{name}"] = length
    assert lengths == {}


def test_functions_have_ten_lines_on_average() -> None:
    lengths = [length for file in python_files(*PACKAGES) for _, length in function_lengths(file)]
    assert sum(lengths) / len(lengths) <= MEAN_FUNCTION


def test_few_lines_give_up_on_types() -> None:
    lines = [line for file in python_files(*PACKAGES) for line in _source(file).splitlines()]
    giving_up = [line for line in lines if "Any" in line.replace("[", " ").replace("]", " ").replace(",", " ").split()]
    assert len(giving_up) < MOST_LINES_WITH_ANY


def test_only_command_lines_know_cyclopts() -> None:
    knowing = {str(file.relative_to(ROOT)) for file in python_files(*PROGRAMS) if "cyclopts" in imported_by(file)}
    allowed = {"teacher_cache/cli.py", "delta_common/command.py"}
    assert {file for file in knowing if not file.startswith("student/cli/")} == allowed


def test_every_room_says_what_it_is_for() -> None:
    rooms = [file for file in python_files(*PACKAGES) if file.name == "__init__.py"]
    assert len(rooms) > 20
    assert [str(room) for room in rooms if not ast.get_docstring(ast.parse(_source(room)))] == []


@cache
def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def function_lengths(file: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of every function, those inside others and of classes too."""
    for node in ast.walk(ast.parse(_source(file))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def imported_by(file: Path) -> set[str]:
    """First names of all that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_source(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found.add(node.module.partition(".")[0])
    return found
