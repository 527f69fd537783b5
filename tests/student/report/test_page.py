"""A report as a file: well formed, thinned without losing a mean, saying what is and is not comparable."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from delta_common.errors import UserError
from student.report.page import render_report, write_report
from student.report.series import MOST_POINTS, charts
from student.run.files import Origin, PlannedStage, Provenance, RunFiles, RunPlan
from tests.helpers.made_runs import NAMES, STEPS, a_run, a_run_on_two_caches
from tests.helpers.small_training import small_settings

VOID = {"meta", "br", "img", "input"}


class Tree(HTMLParser):
    """Checks that elements are closed in the order they were opened, and keeps what is read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def text_of(*runs: RunFiles) -> str:
    tree = Tree(render_report(runs))
    assert tree.open == []
    assert tree.links == ["#curves"]
    return " ".join(tree.words)


def test_one_run_and_several_are_well_formed_and_link_to_nothing(tmp_path: Path) -> None:
    one = a_run(tmp_path / "a")
    page = text_of(one)
    for words in ("optimizer.learning_rate", "beef" * 16, "40 of 40", "after 40 steps", "the teacher"):
        assert words in page
    both = text_of(one, a_run(tmp_path / "b", factor=2))
    assert "Settings that differ" in both
    assert "optimizer.betas" not in both
    assert "All runs have the same settings." in text_of(one, a_run(tmp_path / "b"))


def test_it_says_what_each_student_is_and_began_with(tmp_path: Path) -> None:
    paper, hybrid = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    hybrid = replace(hybrid, settings=small_settings("--model.preset=hybrid"))
    assert "a stack of xLSTM blocks" in text_of(paper)
    assert "random weights" in text_of(paper)
    assert "xLSTM" not in text_of(hybrid)
    assert "attention over the last 64 positions and the first 4 beside a recurrence" in text_of(hybrid)
    both = text_of(paper, hybrid)
    assert "a stack of xLSTM blocks" in both
    assert "its teacher's weights" in both


def test_what_an_unfinished_run_is_trained_on_is_known_from_its_start(tmp_path: Path) -> None:
    finished = a_run(tmp_path / "a")
    assert finished.summary is not None
    origin = Origin(kind="run", path="runs/before", steps=300, cache_fingerprint="c", settings_sha256="s")
    known = Provenance.model_validate(
        finished.summary.model_dump(include=set(Provenance.model_fields)) | {"begun_from": (origin,)}
    )
    page = text_of(replace(finished, summary=None, provenance=known))
    assert "caches/text" in page
    assert "random weights, then 300 steps of runs/before" in page
    assert "10 of 20" not in page


def test_it_names_the_stages_of_a_run(tmp_path: Path) -> None:
    stages = (PlannedStage(name="attention transfer", train="mixers", steps=10),)
    run = replace(a_run(tmp_path / "a"), plan=RunPlan(total_steps=STEPS, stages=stages))
    assert "attention transfer of the mixers, 10 steps" in text_of(run)


def test_costs_are_sums_over_steps(tmp_path: Path) -> None:
    """40 steps of 100 tokens in half a second, a fifth of it waiting."""
    page = text_of(a_run(tmp_path / "a"))
    for words in ("20 s", "200", "20.0%", "25.1%", "953.7 MiB", "1 × text"):
        assert words in page


def test_the_share_of_the_peak_is_over_the_time_it_is_known_of(tmp_path: Path) -> None:
    """Half a second at 0.2, one and a half at 0.4; the rest was trained on another machine."""
    run = a_run(tmp_path / "a")
    known = [replace(run.costs[0], mfu=0.2), replace(run.costs[1], mfu=0.4, seconds=1.5)]
    unknown = [replace(cost, mfu=None) for cost in run.costs[2:]]
    assert "35.0%" in text_of(replace(run, costs=known + unknown))
    assert "MFU" not in text_of(replace(run, costs=unknown))


def test_runs_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    page = text_of(a_run(tmp_path / "x" / "run"), a_run(tmp_path / "y" / "run"))
    assert str(tmp_path / "x" / "run") in page


def test_runs_measured_on_other_rows_are_not_compared(tmp_path: Path) -> None:
    one, other = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    warning = "These runs were measured on different rows: their numbers cannot be compared."
    assert warning not in text_of(one, other)
    assert warning in text_of(one, replace(other, evaluations=[{**e, "rows": 5} for e in other.evaluations]))


def test_long_curves_are_thinned_to_means(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", steps=2 * MOST_POINTS + 3)
    (line,) = next(chart for chart in charts([run]) if chart.measure.key == "loss").lines
    assert len(line.steps) == len(line.values) == MOST_POINTS
    assert line.steps == sorted(line.steps)
    losses = [record["loss"] for record in run.metrics]
    sizes = [len(part) for part in np.array_split(losses, MOST_POINTS)]
    assert np.average(line.values, weights=sizes) == pytest.approx(np.mean(losses))
    assert "Each point is the mean of about 2 steps." in text_of(run)
    assert "Each point" not in text_of(a_run(tmp_path / "b"))


def test_what_cannot_be_drawn_leaves_a_gap(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    metrics = [{**record, "loss": np.nan if record["step"] == 7 else record["loss"]} for record in run.metrics]
    found = charts([replace(run, metrics=[{**record, "frobenius": 0.0} for record in metrics])])
    keys = [chart.measure.key for chart in found if chart.measure.source == "metrics"]
    assert keys == [name for name in NAMES if name != "frobenius"]
    assert len(found[0].lines[0].steps) == STEPS - 1
    assert "NaN" not in render_report([replace(run, metrics=metrics)])


def test_a_page_is_the_same_for_the_same_run_and_written_whole(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    size = write_report([run], tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size == size
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == render_report([run])
    with pytest.raises(UserError, match=r"page\.html: cannot be written .* choose another file with --out"):
        write_report([run], tmp_path / "page.html" / "page.html")


def test_several_caches_have_their_figures_each(tmp_path: Path) -> None:
    mixed, single = a_run_on_two_caches(tmp_path / "mixed"), a_run(tmp_path / "single")
    page = text_of(mixed)
    for words in ("Caches trained on together; means over up to 100 last steps", "60.00%", "1.20"):
        assert words in page
    for words in ("f00d, after 40 steps", "cafe, after 0 steps", "the teacher, on the text of cafe", "2.2500"):
        assert words in page
    assert "caches/a; caches/b" in page
    assert "cannot be compared" not in page
    assert "Caches trained on" not in text_of(single)
    both = text_of(mixed, single)
    assert "mixed, a" in both
    assert "cannot be compared" in both, "the other run was measured on the first held-out cache alone"
