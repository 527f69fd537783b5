"""Is the gradient smaller at equal loss? The norm at the steps where training's cross-entropy passes some levels."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.plan import Folder
from experiments.results.markdown import markdown_table
from experiments.results.spread import Spread, difference
from student.run.records import Records

COMPARED = ("delta", "frobenius", "frobenius-weight", "frobenius-falling", "frobenius-normalised")
LEVELS = (0.25, 0.5, 0.75)
"""Places between the highest and the lowest cross-entropy that all of them have."""

Curve = NDArray[np.float64]
"""(steps, 2): smoothed cross-entropy, smoothed norm."""


def norm_tables(folder: Folder, results: Mapping[str, Mapping[int, Any]]) -> list[str]:
    """The norms at equal cross-entropy, if the variants have been trained."""
    names = [name for name in COMPARED if name in results]
    if len(names) < 2 or names[0] != COMPARED[0]:
        return []
    curves = {name: {seed: _curve(folder, name, seed) for seed in results[name]} for name in names}
    levels = common_levels([curve[:, 0] for by_seed in curves.values() for curve in by_seed.values()])
    heads = ["", *(head for level in levels for head in (f"at CE {level:.2f}", "ratio"))]
    norms = {
        name: [{seed: norm_at(curve, level) for seed, curve in by_seed.items()} for level in levels]
        for name, by_seed in curves.items()
    }
    pairs = {name: zip(norms[name], norms[names[0]], strict=True) for name in names}
    rows = [[name, *(cell for pair in pairs[name] for cell in _cells(*pair))] for name in names]
    title = "**3. Gradient norm before clipping at equal training cross-entropy**"
    return [f"{title}\n\n{markdown_table(heads, rows)}"]


def _cells(ours: dict[int, float], base: dict[int, float]) -> tuple[str, str]:
    logs = [{seed: float(np.log(norm)) for seed, norm in side.items()} for side in (ours, base)]
    found = difference(*logs)
    ratio = "" if found is None else f"{np.exp(found.mean):.3f}"
    return Spread.of(ours).words(3), ratio + (" *" if found is not None and found.is_beyond else "")


def _curve(folder: Folder, name: str, seed: int) -> Curve:
    records = Records(folder.run(name, seed) / "metrics.jsonl").read()
    columns = np.array([[record["cross_entropy"], record["gradient_norm"]] for record in records])
    return smoothed(columns, max(1, len(columns) // 20))


def smoothed(columns: NDArray[np.float64], width: int) -> Curve:
    """Running means over `width` steps, (steps - width + 1, 2)."""
    sums = np.cumsum(np.concatenate([np.zeros((1, columns.shape[1])), columns]), axis=0)
    means: Curve = (sums[width:] - sums[:-width]) / width
    return means


def common_levels(curves: list[NDArray[np.float64]]) -> list[float]:
    """Cross-entropies that every curve passes, one per level of `LEVELS`."""
    top, bottom = min(curve[0] for curve in curves), max(curve.min() for curve in curves)
    return [float(top + share * (bottom - top)) for share in LEVELS]


def norm_at(curve: Curve, level: float) -> float:
    """The smoothed norm where the smoothed cross-entropy first is at the level or below."""
    return float(curve[np.argmax(curve[:, 0] <= level), 1])
