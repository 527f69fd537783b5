"""`student-report` without a real run: what it writes where, and what it refuses."""

from pathlib import Path

import pytest

from delta_common.errors import UserError
from student.cli import report as module
from student.cli.report import MOST_RUNS, report
from student.run import files
from tests.helpers.made_runs import a_run


@pytest.fixture(autouse=True)
def _made_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "read_run", a_run)


def test_one_run_has_its_page_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(tmp_path) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'report.html'}: ")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_several_runs_have_one_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert report(Path("a"), Path("b")) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_goes_where_it_is_told(tmp_path: Path) -> None:
    assert report(tmp_path / "a", out=tmp_path / "sub" / "page.html") == 0
    assert (tmp_path / "sub" / "page.html").exists()


def test_no_run_and_too_many_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is given; name one or more folders"):
        report()
    with pytest.raises(UserError, match=f"{MOST_RUNS + 1} runs: a chart can show at most {MOST_RUNS}; leave some out"):
        report(*[tmp_path] * (MOST_RUNS + 1))
    assert module.app.name == ("student-report",)
