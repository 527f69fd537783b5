"""Findings as a person reads them."""

from pathlib import Path

import pytest

from delta_common.console import print_tables
from teacher_cache.verify.objects import Fault, Findings
from teacher_cache.verify.report import FAULTS_SHOWN, render_findings


def words(findings: Findings, capsys: pytest.CaptureFixture[str]) -> str:
    print_tables(render_findings(findings))
    return capsys.readouterr().out


def test_a_sound_cache_is_called_sound(capsys: pytest.CaptureFixture[str]) -> None:
    findings = Findings(
        Path("c"), objects=1234, bytes=2**20, shards_done=3, shards_planned=3, seconds=2.0, measures={"x": {"a": 0.25}}
    )
    said = words(findings, capsys)
    assert "3 of 3" in said
    assert "1,234, 1.0 MiB in 2 s (512.0 KiB/s)" in said
    assert "a 0.25" in said
    assert said.rstrip().endswith("sound")
    assert "unsound" not in said


@pytest.mark.parametrize(
    ("count", "verdict"),
    [(1, "unsound: 1 fault"), (20, "unsound: 20 faults"), (23, "unsound: 23 faults, 3 of them not shown")],
)
def test_faults_are_listed_up_to_a_number_and_counted(
    count: int, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = Findings("c", [Fault("size", f"object-{n}-", n, "[b]too short[/b]") for n in range(count)])
    said = words(findings, capsys)
    assert verdict == next(line.strip() for line in said.splitlines() if line.startswith("unsound"))
    assert said.count("[b]too short[/b]") == min(count, FAULTS_SHOWN)
    assert "teacher-cache repair PATH" in said
