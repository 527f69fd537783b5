"""Error of the gradient against bytes per token, one panel per temperature."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

OURS = ("sampled, 1 + 10", "sampled, small", "sampled, default", "sampled, fine")


def plot(rows: Sequence[dict[str, Any]], path: Path, student: str = "trained") -> None:
    """Write the plot as PNG; `rows` are what measure.py writes as JSON."""
    shown = [row for row in rows if row["student"] == student and not row["scheme"].startswith("exact")]
    temperatures = sorted({row["T"] for row in shown})
    figure, axes = plt.subplots(1, len(temperatures), figsize=(3.1 * len(temperatures), 3.6), sharey=True)
    for axis, temperature in zip(axes, temperatures, strict=True):
        here = [row for row in shown if row["T"] == temperature]
        ours = sorted((row for row in here if row["scheme"] in OURS), key=lambda row: row["bytes_per_token"])
        axis.plot(*_points(ours), "o-", color="#d62728", label="sampled entries (unbiased)", zorder=3)
        for number, name in enumerate(dict.fromkeys(r["scheme"] for r in here if r["scheme"] not in OURS)):
            marker = "s^vDP*X<>"[number % 9]
            color = f"C{number + 4 if number + 4 != 3 else 9}"
            axis.plot(*_points([row for row in here if row["scheme"] == name]), marker, color=color, label=name)
        axis.set(title=f"T = {temperature:g}", xlabel="bytes per token", yscale="log", xlim=(0, None))
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("relative error of the gradient")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_states(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The same for the Frobenius term, one panel per student; `rows` are what states.py writes as JSON."""
    students = list(dict.fromkeys(row["student"] for row in rows))
    figure, axes = plt.subplots(1, len(students), figsize=(4.6 * len(students), 4.4), sharey=True)
    for axis, student in zip(axes, students, strict=True):
        for number, row in enumerate(row for row in rows if row["student"] == student):
            preset = "`" in row["scheme"]
            style = {"color": "#d62728", "marker": "o"} if preset else {"marker": "s^vDP*X<>"[number % 9]}
            axis.plot(row["bytes_per_token"], row["error"], linestyle="", label=row["scheme"], **style)
        axis.set(title=f"student: {student}", xlabel="bytes per token", xscale="log", yscale="log")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("relative error of F's gradient")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=2, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.34, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _points(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["bytes_per_token"] for row in rows], [row["error"] for row in rows]
