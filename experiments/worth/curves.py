"""Held-out cross-entropy and KL over tokens and over seconds: mean and range over seeds."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from experiments.worth.page import curves_of
from experiments.worth.plan import WorthFolder
from experiments.worth.students import KINDS

FIGURES = {"cross_entropy": "held-out cross-entropy, nats", "kl": "KL from the teacher, nats"}


def plot_curves(folder: WorthFolder, path: Path) -> bool:
    """Write a PNG; return whether there was something to show."""
    curves, alone = curves_of(folder.found()), folder.alone()
    if not curves:
        return False
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), squeeze=False)
    for row, (name, words) in zip(axes, FIGURES.items(), strict=True):
        for kind in (kind for kind in KINDS if kind.name in curves):
            color = f"C{KINDS.index(kind)}"
            _draw(row[0], curves[kind.name], name, kind.name, 1e-6, color)
            if kind.name in alone:
                per_token = 1 / alone[kind.name]["tokens_per_second"]
                _draw(row[1], curves[kind.name], name, kind.name, per_token, color)
        for axis, unit in zip(row, ("million tokens", "seconds of steps, each student alone"), strict=True):
            axis.set(xscale="log", xlabel=unit, ylabel=words)
            axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _draw(
    axis: Axes, by_seed: dict[int, list[dict[str, Any]]], name: str, words: str, scale: float, color: str
) -> None:
    shared = sorted(set.intersection(*({point["tokens"] for point in points} for points in by_seed.values())) - {0})
    values = [
        [point[name] for points in by_seed.values() for point in points if point["tokens"] == at] for at in shared
    ]
    places = [scale * at for at in shared]
    axis.plot(places, [sum(each) / len(each) for each in values], label=words, color=color)
    low, high = [min(each) for each in values], [max(each) for each in values]
    axis.fill_between(places, low, high, alpha=0.2, color=color)
