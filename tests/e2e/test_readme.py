"""What the documents tell a user to type: every command line is accepted, and those that take seconds are run.

Blocks of `sh` are typed as they stand; blocks of `bash` install, or are batch scripts with commands of ours in them.
"""

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from zarr.errors import ZarrUserWarning

from delta_common.settings_file import load_settings
from student.cli import evaluate as eval_cli
from student.cli import export as export_cli
from student.cli import generate as generate_cli
from student.cli import report as report_cli
from student.cli import train as student_cli
from student.settings import TrainSettings
from teacher_cache import cli as cache_cli
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.settings import BuildSettings
from tests.helpers import ROOT

README = ROOT / "README.md"
FORMAT = ROOT / "docs" / "format.md"
CLUSTERS = ROOT / "docs" / "clusters.md"
EXPORT = ROOT / "docs" / "export.md"
DOCUMENTS = [README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHER = re.compile(
    r"^(?:srun )?torchrun (?:--[a-z-]+ \S+ +)*--nproc-per-node \d+ (?:--[a-z-]+ \S+ +)*-m (student|teacher_cache)\b"
)
APPS = {
    module.app.name[0]: module.app
    for module in (cache_cli, student_cli, eval_cli, export_cli, generate_cli, report_cli)
}
PROGRAMS = {"student": "student-train", "teacher_cache": "teacher-cache"}


def blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(document: Path = README, language: str = "sh") -> list[str]:
    """Command lines in the order of a document, several processes shown as one."""
    lines = [line for block in blocks(document, language) for line in re.sub(r"\\\n *", "", block).splitlines()]
    return [LAUNCHER.sub(lambda found: PROGRAMS[found[1]], line) for line in lines if line.strip()]


def commands_of_scripts() -> list[str]:
    """Our commands in the batch scripts of docs/clusters.md."""
    return [line for line in commands(CLUSTERS, "bash") if line.startswith(tuple(APPS))]


def is_cheap(command: str) -> bool:
    started = command.startswith(("teacher-cache synth ", "teacher-cache inspect ", "student-train "))
    return started and not (command.startswith("student-train") and "caches/synthetic" not in command)


OURS = [command for command in commands(EXPORT) if command.startswith(tuple(APPS))]


@pytest.mark.parametrize("command", [*commands(), *OURS, *commands_of_scripts()])
def test_a_command_is_accepted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command, comments=True)
    if program == "make":
        done = subprocess.run(["make", "-n", "-o", "setup", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    app = APPS[program]
    function, bound, *_ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    settings: dict[Any, Any] = {
        cache_cli.build: BuildSettings,
        cache_cli.repair: BuildSettings,
        student_cli.train: TrainSettings,
    }
    if function in settings:
        load_settings(settings[function], bound.arguments.get("config"), bound.arguments.get("overrides", ()))


def test_batch_scripts_have_a_launch_of_each_kind() -> None:
    text = CLUSTERS.read_text()
    assert {command.split()[0] for command in commands_of_scripts()} == {"teacher-cache", "student-train"}
    assert len(commands_of_scripts()) == len(re.findall(r"^(?:srun |torchrun |teacher-cache )", text, re.MULTILINE))


def test_installing_by_hand_is_what_make_does_in_its_order() -> None:
    (by_hand,) = (block for block in blocks(README, "bash") if "deepspeed" in block)
    lines = [line.partition("  # ")[0].strip() for line in by_hand.splitlines()]
    assert [line.split()[-1] for line in lines] == ["torch", "ninja", "deepspeed", "."]
    make = (ROOT / "Makefile").read_text()
    assert "DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed" in make
    assert lines[2] == "DS_BUILD_OPS=0 pip install --no-build-isolation -c constraints.txt deepspeed"
    assert "--upgrade pip setuptools wheel ninja" in make
    assert make.index("install --quiet --disable-pip-version-check $(TORCH)") < make.index("deepspeed\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README's reader has it after the demo, with synthetic caches in the place of real ones."""
    made: Path = tmp_path_factory.mktemp("readme")
    (made / "configs").symlink_to(ROOT / "configs")
    for path in ("demo/cache", "demo/heldout"):
        make_synthetic_cache(made / path, rows=8, seq_len=40, vocab_size=64, top_k=8)
    return made


def test_what_takes_seconds_is_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    cheap = [command for command in commands() if is_cheap(command)]
    assert {shlex.split(command)[1] for command in cheap} >= {"synth", "inspect", "--cache"}
    for command in cheap:
        program, *arguments = shlex.split(command, comments=True)
        if program == "teacher-cache":
            assert cache_cli.app(arguments, result_action="return_value") == 0
            continue
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as stop:
            student_cli.main()
        assert stop.value.code == 0, (command, capsys.readouterr().err)
    capsys.readouterr()
    snippets = [(README, code) for code in blocks(README, "python")] + [(FORMAT, c) for c in blocks(FORMAT, "python")]
    for document, code in snippets:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Numcodecs codecs are not in the Zarr version 3", ZarrUserWarning)
            exec(compile(code, str(document), "exec"), {})
        assert capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"(?<!!)\[[^\]\n]+\]\(([^)\n]+)\)", text) if "://" not in target]
    missing = [target for target in targets if not (document.parent / target.partition("#")[0]).exists()]
    assert not missing
