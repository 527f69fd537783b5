"""The demo's last page: what was made, what the two students learnt and write, what to try next.

Usage: python tools/demo_report.py CACHE HELD_OUT_CACHE PAPER_RUN HYBRID_RUN
"""

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from student.run.files import RunFiles, RunSummary, read_run, read_summary
from teacher_cache import open_cache
from teacher_cache.inspect.summary import summarize

CLEAR_MARGIN = 1.0
"""Nats per token by which the paper's student must fall in held-out cross-entropy to have shown anything."""

NEAR_TEACHER = 0.25
"""Nats per token from the teacher's cross-entropy within which the student that begins as its teacher must end."""

TITLES = ("the paper's", "begins as its teacher", "the teacher")
SHOWN = 2
"""Beginnings of held-out rows that are shown continued."""


class Learnt(NamedTuple):
    """A finished run: its files, its summary, and its first and its last measurement."""

    run: RunFiles
    summary: RunSummary
    before: dict[str, float]
    after: dict[str, float]


def learnt_in(path: Path) -> Learnt:
    """The run in a folder."""
    run = read_run(path)
    before, *_, after = run.evaluations
    return Learnt(run, read_summary(path), before, after)


def words_of(cache: Path, held_out: Path, paper: Learnt, hybrid: Learnt, teacher: float) -> str:
    """The whole page; `teacher` is the teacher's own cross-entropy on the held-out documents."""
    made = summarize(open_cache(cache))
    retained = ", ".join(f"{mass:.1%} at T = {t}" for t, mass in made["retained_mass"].items())
    lines = [
        "",
        f"cache            {cache}: {made['tokens']:,} tokens in {made['bytes'] / 2**20:.1f} MiB, "
        f"and {_weights_bytes(cache) / 2**20:.0f} MiB of the teacher's weights",
        f"bytes per token  {made['bytes_per_token']:.1f}, of which {_logit_bytes(made):.1f} for the distributions",
        f"retained mass    {retained}",
        f"entries kept     {_entry_words(made)}; sums over them are unbiased at every T from 1 to 2",
        "",
        "two students, trained without the teacher, on documents held out (before → after training):",
        "",
        *table(paper, hybrid, teacher),
        "",
        *texts(paper, hybrid),
        "",
        f"next, after `source {Path(sys.executable).with_name('activate')}`:",
        f"  teacher-cache inspect {cache} --row 3 --tokens 0:40",
        f'  student-generate {hybrid.run.path} --prompt "The module provides" --temperature 0',
        f"  student-train --cache {cache} --config configs/demo-student.yaml --out {paper.run.path}-longer "
        f"--training.epochs 3 --evaluation.cache {held_out}",
        "  teacher-cache synth /tmp/synthetic && student-train --cache /tmp/synthetic --training.max_steps 5",
    ]
    return "\n".join(lines)


def table(paper: Learnt, hybrid: Learnt, teacher: float) -> list[str]:
    """Both students beside the teacher, whose cross-entropy is `teacher`."""
    students = (paper, hybrid)
    rows = [
        ("", *TITLES),
        ("held-out CE, nats per token", *(_change(s, "cross_entropy", ".3f") for s in students), f"{teacher:.3f}"),
        ("perplexity", *(_change(s, "perplexity", ",.1f") for s in students), f"{math.exp(teacher):.1f}"),
        ("KL from the teacher, nats", *(_change(s, "kl", ".3f") for s in students), "0"),
        ("same first choice", *(_change(s, "agreement", ".1%") for s in students), "100%"),
        ("parameters trained, millions", *(f"{s.summary.trainable_parameters / 1e6:.1f}" for s in students), ""),
        ("tokens trained on", *(f"{sum(cost.tokens for cost in s.run.costs):,}" for s in students), ""),
        ("seconds of training steps", *(f"{sum(cost.seconds for cost in s.run.costs):.0f}" for s in students), ""),
        ("most memory, GiB", *(f"{_most_memory(s):.1f}" for s in students), ""),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def texts(paper: Learnt, hybrid: Learnt) -> list[str]:
    """How each student continues the same held-out beginnings, always with its likeliest token."""
    lines = ["how they continue held-out text, with the likeliest token each time:"]
    for by_paper, by_hybrid in zip(paper.summary.samples[:SHOWN], hybrid.summary.samples[:SHOWN], strict=True):
        lines += ["", f"  {_one_line(by_paper.prompt)} …"]
        lines += [
            f"    {title:<24}{_one_line(s.likeliest)}" for title, s in zip(TITLES, (by_paper, by_hybrid), strict=False)
        ]
    return lines


def failures(paper: Learnt, hybrid: Learnt, teacher: float) -> list[str]:
    """What the demo was to show and did not."""
    fall = paper.before["cross_entropy"] - paper.after["cross_entropy"]
    distance = hybrid.after["cross_entropy"] - teacher
    found = []
    if fall < CLEAR_MARGIN:
        found.append(f"the paper's student did NOT fall by {CLEAR_MARGIN:g} nats, but by {fall:.3f}")
    if distance > NEAR_TEACHER:
        found.append(f"the student that begins as its teacher ended {distance:.3f} nats above it")
    return found


def _change(student: Learnt, measure: str, form: str) -> str:
    return f"{student.before[measure]:{form}} → {student.after[measure]:{form}}"


def _most_memory(student: Learnt) -> float:
    return max(cost.peak_bytes for cost in student.run.costs) / 2**30


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _weights_bytes(cache: Path) -> int:
    """Embedding, LM head and body of the teacher, as the cache carries them."""
    return sum(file.stat().st_size for file in (cache / "teacher").glob("*.safetensors"))


def _entry_words(summary: dict[str, dict[str, float]]) -> str:
    targets, entries = summary["targets"], summary["entries"]
    return f"{entries['mean']:.1f} per position: top {targets['top_k']} and up to {targets['samples']} sampled"


def _logit_bytes(summary: dict[str, dict[str, dict[str, float]]]) -> float:
    return sum(array["per_token"] for name, array in summary["arrays"].items() if name.startswith("logits/"))


def main() -> None:
    """Print the report; exit 1 when a student did not learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cache", "held_out", "paper", "hybrid"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    paper, hybrid = learnt_in(arguments.paper), learnt_in(arguments.hybrid)
    teacher = summarize(open_cache(arguments.held_out))["cross_entropy"]
    failed = failures(paper, hybrid, teacher)
    lines = [words_of(arguments.cache, arguments.held_out, paper, hybrid, teacher), *(f"FAILED: {f}" for f in failed)]
    Console(soft_wrap=True).print("\n".join(lines), markup=False, highlight=False)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
