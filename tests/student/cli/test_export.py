"""`student-export` passes on what it is told and says what it wrote."""

from pathlib import Path

import pytest

from student.cli.export import app
from student.export import write


def test_run_folder_and_cache_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[object, ...]] = []

    def export_student(*given: object) -> int:
        asked.append(given)
        return 3 * 2**20

    monkeypatch.setattr(write, "export_student", export_student)
    for words in (["run", "--out", "to"], ["run", "--out", "to", "--cache", "s3://b/c"]):
        assert app(words, result_action="return_value", exit_on_error=False) == 0
    assert asked == [(Path("run"), Path("to"), None), (Path("run"), Path("to"), "s3://b/c")]
    assert capsys.readouterr().out == "to: 3.0 MiB\n" * 2
