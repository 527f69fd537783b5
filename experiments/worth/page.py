"""The page of a comparison: how well students do at 1, 5 and 20 million tokens and at the end, with spreads over seeds,
what a step of each takes, and what they can do."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.results.markdown import markdown_table
from experiments.results.spread import Spread, difference
from experiments.worth.plan import WorthFolder
from experiments.worth.students import KINDS, TABLES, Kind
from experiments.worth.tasks_table import tasks_tables

MARKS = (1e6, 5e6, 20e6, 45e6)
"""Tokens at which a table has columns, where a training got so far."""
NEAR = 0.15
"""A measurement stands for a mark that it is this near to, as a share of it."""

Curves = Mapping[str, Mapping[int, list[dict[str, Any]]]]
"""The measurements of each training, by student and seed."""


def page(folder: WorthFolder, kinds: Sequence[Kind] = KINDS) -> str:
    """All there is of these students, in Markdown."""
    shown = {kind.name for kind in kinds}
    results = [each for each in folder.found() if each["name"] in shown]
    if not results:
        return "No training has finished yet.\n"
    curves = curves_of(results)
    tables = [
        _table(title, rows, curves) for title, rows in TABLES.items() if sum(kind.name in curves for kind in rows) > 1
    ]
    alone = {name: each for name, each in folder.alone().items() if name in shown}
    return "\n\n".join([_setup(results), *tables, _costs(alone, results), *tasks_tables(folder, kinds)]) + "\n"


def curves_of(results: list[dict[str, Any]]) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """The measurements by student and seed."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for each in results:
        found.setdefault(each["name"], {})[each["seed"]] = each["points"]
    return found


def at_mark(points: list[dict[str, Any]], tokens: float) -> dict[str, Any] | None:
    """The measurement that stands for so many tokens; None where there is none near."""
    nearest = min(points, key=lambda point: abs(point["tokens"] - tokens))
    return nearest if abs(nearest["tokens"] - tokens) <= NEAR * tokens else None


def _setup(results: list[dict[str, Any]]) -> str:
    machines = ", ".join(sorted({each["machine"] for each in results}))
    teacher, seeds = results[0]["teacher"], sorted({each["seed"] for each in results})
    last = max(point["tokens"] for each in results for point in each["points"])
    return (
        f"{machines}. {len(results)} trainings of up to {last:,} tokens, seeds {', '.join(map(str, seeds))}. "
        f"The teacher on the held-out rows: CE {teacher['cross_entropy']:.3f}. "
        f"Mean ± standard deviation over seeds; Δ by pairs of one seed, with its 95 % interval."
    )


def _table(title: str, kinds: tuple[Kind, ...], curves: Curves) -> str:
    known = [kind for kind in kinds if kind.name in curves]
    marks = [mark for mark in MARKS if any(_at(curves[kind.name], mark, "kl") for kind in known)]
    ends = {name: {seed: [points[-1]] for seed, points in of.items()} for name, of in curves.items()}
    heads = ["", *(f"CE / KL at {mark / 1e6:g} M" for mark in marks), "CE at the end", "KL", "agreement", "ΔCE", "ΔKL"]
    rows = []
    for kind in known:
        at_marks = [_pair(curves[kind.name], mark) for mark in marks]
        end = {name: _last(ends[kind.name], name) for name in ("cross_entropy", "kl", "agreement")}
        against = [
            _difference(end[name], _last(ends[known[0].name], name)) if kind is not known[0] else ""
            for name in ("cross_entropy", "kl")
        ]
        rows.append([kind.words, *at_marks, *(Spread.of(end[name]).words(3) for name in end), *against])
    return f"**{title}**\n\n{markdown_table(heads, rows)}"


def _at(curve: Mapping[int, list[dict[str, Any]]], mark: float, name: str) -> dict[int, float]:
    found = {seed: at_mark(points, mark) for seed, points in curve.items()}
    return {seed: float(point[name]) for seed, point in found.items() if point is not None}


def _last(curve: Mapping[int, list[dict[str, Any]]], name: str) -> dict[int, float]:
    return {seed: float(points[-1][name]) for seed, points in curve.items()}


def _pair(curve: Mapping[int, list[dict[str, Any]]], mark: float) -> str:
    both = [_at(curve, mark, name) for name in ("cross_entropy", "kl")]
    return " / ".join(Spread.of(values).words(3) if values else "–" for values in both)


def _difference(ours: dict[int, float], theirs: dict[int, float]) -> str:
    found = difference(ours, theirs)
    if found is None:
        return "–"
    return f"{found.mean:+.3f}" + ("" if found.half_width is None else f" ± {found.half_width:.3f}")


def _costs(alone: Mapping[str, dict[str, Any]], results: list[dict[str, Any]]) -> str:
    trained = {each["name"]: each["trainable_parameters"] for each in results}
    heads = ["a step with nothing beside it", "trained parameters", "ms", "tokens/s", "MFU", "GiB"]
    rows = []
    for name, each in alone.items():
        share = "–" if each["mfu"] is None else f"{each['mfu']:.1%}"
        figures = [f"{1000 * each['seconds']:.1f}", f"{each['tokens_per_second']:,.0f}", share]
        parameters = f"{trained[name]:,}" if name in trained else "–"
        rows.append([name, parameters, *figures, f"{each['peak_bytes'] / 2**30:.1f}"])
    return markdown_table(heads, rows)
