"""Held-out cross-entropy and KL over tokens and over seconds: mean and range over seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.worth.page import curves_of
from experiments.worth.plan import WorthFolder
from experiments.worth.students import KINDS, Kind

FIGURES = {"cross_entropy": "held-out cross-entropy, nats", "kl": "KL from the teacher, nats"}
STYLES = ("-", "--", ":")
"""Of lines, when colours begin again."""


def plot_curves(folder: WorthFolder, path: Path, kinds: Sequence[Kind] = KINDS) -> bool:
    """Write a PNG of these students, over seconds too if some were timed; return whether there was any to show."""
    curves, alone = curves_of(folder.found()), folder.alone()
    shown = [kind.name for kind in kinds if kind.name in curves]
    if not shown:
        return False
    units = ["million tokens"]
    if any(name in alone for name in shown):
        units.append("seconds of steps, each student alone")
    figure, axes = plt.subplots(2, len(units), figsize=(5.5 * len(units), 7.5), squeeze=False)
    for row, (measure, words) in zip(axes, FIGURES.items(), strict=True):
        for number, name in enumerate(shown):
            look = {"color": f"C{number % 10}", "linestyle": STYLES[number // 10 % len(STYLES)]}
            _draw(row[0], curves[name], measure, name, 1e-6, look)
            if name in alone:
                _draw(row[1], curves[name], measure, name, 1 / alone[name]["tokens_per_second"], look)
        for axis, unit in zip(row, units, strict=True):
            axis.set(xscale="log", xlabel=unit, ylabel=words)
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _draw(
    axis: Axes, by_seed: dict[int, list[dict[str, Any]]], name: str, words: str, scale: float, look: dict[str, Any]
) -> None:
    shared = sorted(set.intersection(*({point["tokens"] for point in points} for points in by_seed.values())) - {0})
    values = [
        [point[name] for points in by_seed.values() for point in points if point["tokens"] == at] for at in shared
    ]
    places = [scale * at for at in shared]
    axis.plot(places, [sum(each) / len(each) for each in values], label=words, **look)
    low, high = [min(each) for each in values], [max(each) for each in values]
    axis.fill_between(places, low, high, alpha=0.2, color=look["color"])
