"""What keeping less of the teacher costs: KL beyond that of training on all its logits; one panel per table."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from experiments.results.spread import Difference, difference
from experiments.results.tables import Sheet
from experiments.variants import TABLES, Table, Variant

UNBIASED, BIASED = "#d62728", "#7f7f7f"


def plot_accounts(sheet: Sheet, path: Path) -> bool:
    """Write a PNG with the 95 % intervals over seeds; return whether there was something to show."""
    panels = [(table, _differences(sheet, table)) for table in TABLES if table.part == 2]
    panels = [(table, found) for table, found in panels if found]
    if not panels:
        return False
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.2), squeeze=False)
    for axis, (table, found) in zip(axes[0], panels, strict=True):
        _draw(axis, table, found)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True


def _differences(sheet: Sheet, table: Table) -> list[tuple[Variant, Difference]]:
    """Every variant's KL beyond that of the first, where both have a seed in common."""
    base, *others = table.variants
    if base.name not in sheet.results:
        return []
    known = [variant for variant in others if variant.name in sheet.results]
    pairs = [(v, difference(sheet.column(v.name, "kl"), sheet.column(base.name, "kl"))) for v in known]
    return [(variant, found) for variant, found in pairs if found is not None]


def _draw(axis: Axes, table: Table, found: list[tuple[Variant, Difference]]) -> None:
    for place, (variant, kl) in enumerate(reversed(found)):
        color = UNBIASED if variant.teacher == "cache" else BIASED
        axis.errorbar(kl.mean, place, xerr=kl.half_width, fmt="o", color=color, capsize=3)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(found)), [_label(variant) for variant, _ in reversed(found)])
    axis.set_title(table.title.partition(", ")[2], fontsize=10)
    axis.set_xlabel("KL beyond training on all logits, nats")
    axis.grid(alpha=0.3, axis="x")


def _label(variant: Variant) -> str:
    return variant.words.partition(", T =")[0].replace("`", "")
