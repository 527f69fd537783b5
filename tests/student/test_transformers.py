"""The one import that makes transformers know exported students, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.small_students import small_model

PROGRAM = """
import sys
{imports}
for kind in ("xlstm", "transplant"):
    print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1] + "/" + kind)).__name__)
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of student."""
    folder = tmp_path_factory.mktemp("transformers")
    for kind in ("xlstm", "transplant"):
        small_model(kind).save_pretrained(folder / kind)
    return folder


def printed(imports: str, export: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM.format(imports=imports), str(export)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env={"PYTHONPATH": ":".join(sys.path)}
    )


@pytest.mark.parametrize("before", [True, False])
def test_an_auto_class_loads_an_export_after_the_import(export: Path, before: bool) -> None:
    lines = ["import student.transformers", "from transformers import AutoModelForCausalLM"]
    done = printed("\n".join(lines if before else reversed(lines)), export)
    assert done.stdout == "DistilXLSTMForCausalLM\nDistilTransplantForCausalLM\n", done.stderr


def test_nothing_else_registers_it(export: Path) -> None:
    done = printed("import student.inference.load, student\nfrom transformers import AutoModelForCausalLM", export)
    assert "distil_xlstm" in done.stderr
    assert done.returncode == 1
