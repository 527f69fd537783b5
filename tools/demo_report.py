"""The demo's last page: what was made, what the student learnt, what to try next.

Usage: python tools/demo_report.py CACHE HELD_OUT_CACHE RUN
"""

import argparse
import json
import math
import sys
from pathlib import Path

from rich.console import Console

from teacher_cache import open_cache
from teacher_cache.inspect.summary import summarize

CLEAR_MARGIN = 1.0
"""Nats per token by which held-out cross-entropy must fall for the demo to have shown anything."""


def measurements(run: Path) -> list[dict[str, float]]:
    """Held-out numbers in the order they were taken: the first before training, the last after it."""
    return [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]


def words_of(cache: Path, held_out: Path, run: Path) -> tuple[str, bool]:
    """The report, and whether held-out cross-entropy fell by the margin."""
    made, teacher = summarize(open_cache(cache)), summarize(open_cache(held_out))
    before, *_, after = measurements(run)
    fall = before["cross_entropy"] - after["cross_entropy"]
    learnt = fall >= CLEAR_MARGIN
    retained = ", ".join(f"{mass:.1%} at T = {t}" for t, mass in made["retained_mass"].items())
    verdict = "fell by" if learnt else f"did NOT fall by {CLEAR_MARGIN:g} nats, but by"
    lines = [
        "",
        f"cache            {cache}: {made['tokens']:,} tokens in {made['bytes'] / 2**20:.1f} MiB",
        f"bytes per token  {made['bytes_per_token']:.1f}, of which {_logit_bytes(made):.1f} for the distributions",
        f"retained mass    {retained}",
        f"entries kept     {_entry_words(made)}; sums over them are unbiased at every T from 1 to 2",
        f"student          {run}, trained on {made['tokens']:,} tokens, teacher not loaded",
        f"held-out CE      {before['cross_entropy']:.3f} → {after['cross_entropy']:.3f} nats per token: "
        f"{verdict} {fall:.3f} (the teacher's own: {teacher['cross_entropy']:.3f})",
        f"perplexity       {before['perplexity']:,.0f} → {after['perplexity']:,.1f} "
        f"(the teacher's: {math.exp(teacher['cross_entropy']):.1f})",
        f"KL to teacher    {before['kl']:.3f} → {after['kl']:.3f} nats at T = 1",
        f"same 1st choice  {before['agreement']:.1%} → {after['agreement']:.1%}",
        "",
        f"next, after `source {Path(sys.executable).with_name('activate')}`:",
        f"  teacher-cache inspect {cache} --row 3 --tokens 0:40",
        f"  student-train --cache {cache} --config configs/demo-student.yaml --out {run}-longer "
        f"--training.epochs 3 --evaluation.cache {held_out}",
        f"  tensorboard --logdir {run}/monitor",
        "  teacher-cache synth /tmp/synthetic && student-train --cache /tmp/synthetic --training.max_steps 5",
    ]
    return "\n".join(lines), learnt


def _entry_words(summary: dict[str, dict[str, float]]) -> str:
    targets, entries = summary["targets"], summary["entries"]
    return f"{entries['mean']:.1f} per position: top {targets['top_k']} and up to {targets['samples']} sampled"


def _logit_bytes(summary: dict[str, dict[str, dict[str, float]]]) -> float:
    return sum(array["per_token"] for name, array in summary["arrays"].items() if name.startswith("logits/"))


def main() -> None:
    """Print the report; exit 1 when the student did not learn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("cache", "held_out", "run"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    words, learnt = words_of(arguments.cache, arguments.held_out, arguments.run)
    Console(soft_wrap=True).print(words, markup=False, highlight=False)
    sys.exit(0 if learnt else 1)


if __name__ == "__main__":
    main()
