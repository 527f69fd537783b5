"""Markdown tables of the results; verdicts follow from the numbers alone."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from delta_common.progress import duration
from experiments.plan import ExperimentPlan, Folder
from experiments.results.gradient_norms import norm_tables
from experiments.results.markdown import markdown_table
from experiments.results.spread import Difference, Spread, difference
from experiments.variants import TABLES, Table, Variant

Results = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""The result of each training, by variant and seed."""

COLUMNS = {
    "cross_entropy": ("CE", 4),
    "kl": ("KL at T = 1", 4),
    "agreement": ("agreement", 4),
    "calibration_error": ("ECE", 4),
    "gradient_norm": ("\\|g\\|", 3),
    "seconds": ("seconds", 0),
}
JUDGED = {"cross_entropy": -1, "kl": -1, "agreement": 1, "calibration_error": -1}
"""Figures a verdict is about, and the sign of a gain."""

DIFFERENCES = ("cross_entropy", "kl")
"""Figures whose difference has a column."""


@dataclass(frozen=True)
class Sheet:
    """Everything the page is made of."""

    folder: Folder
    plan: ExperimentPlan
    results: Results
    """Results of trainings that did not diverge."""
    diverged: Mapping[str, list[int]]
    """Seeds with which a variant diverged to parameters that are not finite; they are in no mean."""

    def column(self, variant: str, name: str) -> dict[int, float]:
        """One figure by seed."""
        return {seed: float(result[name]) for seed, result in self.results[variant].items()}


def read_sheet(folder: Folder) -> Sheet:
    """All results in a folder."""
    results: dict[str, dict[int, Mapping[str, Any]]] = {}
    diverged: dict[str, list[int]] = {}
    for result in folder.results():
        variant, seed = str(result["variant"]), int(str(result["seed"]))
        if math.isfinite(float(str(result["cross_entropy"]))):
            results.setdefault(variant, {})[seed] = result
        else:
            diverged.setdefault(variant, []).append(seed)
    return Sheet(folder, folder.plan(), results, diverged)


def page(sheet: Sheet) -> str:
    """Everything in Markdown."""
    tables = [render(sheet, table) for table in TABLES if sum(v.name in sheet.results for v in table.variants) > 1]
    return "\n\n".join([*_setup(sheet), *tables, *norm_tables(sheet.folder, sheet.results)]) + "\n"


def _setup(sheet: Sheet) -> list[str]:
    plan, results = sheet.plan, [r for by_seed in sheet.results.values() for r in by_seed.values()]
    if not results:
        return ["No training has finished yet."]
    seeds = sorted({int(result["seed"]) for result in results})
    devices = sorted({f"{result['device']}, torch {result['torch']}" for result in results})
    builds = json.loads((sheet.folder.path / "build_seconds.json").read_text())
    built = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in builds.items())
    size = (
        f"{plan.rows:,} rows of {plan.seq_len} tokens, {plan.epochs} epochs of {plan.rows // plan.batch} steps of "
        f"{plan.batch} rows: {plan.steps * plan.batch * plan.seq_len:,} tokens a training; "
        f"{plan.held_out} rows held out; seeds {', '.join(map(str, seeds))}."
    )
    time = duration(sum(float(result["seconds"]) for result in results))
    machine = f"{'; '.join(devices)}. {len(results)} trainings, {time} of steps. Caches: {built}."
    words = [*_teacher_words(sheet), *_timing_words(sheet), *_diverged_words(sheet)]
    return [f"Teacher {plan.teacher}; {size}", machine, *words]


def _teacher_words(sheet: Sheet) -> list[str]:
    if not sheet.folder.teacher_scores.exists():
        return []
    found = json.loads(sheet.folder.teacher_scores.read_text())
    return [f"The teacher itself: CE {found['cross_entropy']:.4f}, ECE {found['calibration_error']:.4f}."]


def _diverged_words(sheet: Sheet) -> list[str]:
    found = [f"{name} (seed {', '.join(map(str, seeds))})" for name, seeds in sheet.diverged.items()]
    return [f"Diverged, and in no mean: {'; '.join(found)}."] if found else []


def _timing_words(sheet: Sheet) -> list[str]:
    if not sheet.folder.timing.exists():
        return []
    words = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in sheet.folder.step_seconds().items())
    return [f"A step with nothing beside it: {words}. Seconds in the tables are of trainings beside each other."]


def render(sheet: Sheet, table: Table) -> str:
    """One table; variants without a result yet are left out."""
    known = [variant for variant in table.variants if variant.name in sheet.results]
    base = table.variants[0]
    heads = ["", "steps", *(head for head, _ in COLUMNS.values()), "ΔCE", "ΔKL", "against the first"]
    rows = [_cells(sheet, variant, base) for variant in known]
    return f"**{table.part}. {table.title}**\n\n{markdown_table(heads, rows, words=(0, len(heads) - 1))}"


def _cells(sheet: Sheet, variant: Variant, base: Variant) -> list[str]:
    steps = sorted({int(result["steps"]) for result in sheet.results[variant.name].values()})
    figures = [Spread.of(sheet.column(variant.name, name)).words(digits) for name, (_, digits) in COLUMNS.items()]
    seeds = len(sheet.results[variant.name])
    words = variant.words if variant.name not in sheet.diverged else f"{variant.words} ({seeds} that did not diverge)"
    cells = [words, "–".join(f"{count:,}" for count in steps), *figures]
    if variant is base or base.name not in sheet.results:
        return [*cells, "", "", ""]
    found = {name: difference(sheet.column(variant.name, name), sheet.column(base.name, name)) for name in JUDGED}
    return [*cells, *(_difference_words(found[name]) for name in DIFFERENCES), verdict(found)]


def _difference_words(found: Difference | None) -> str:
    if found is None:
        return ""
    return f"{found.mean:+.4f}" + ("" if found.half_width is None else f" ± {found.half_width:.4f}")


def verdict(found: Mapping[str, Difference | None]) -> str:
    """Which figures are better or worse beyond the seeds' spread."""
    known = {name: d for name, d in found.items() if d is not None}
    beyond = [
        f"{COLUMNS[name][0].partition(' ')[0]} {'better' if d.mean * JUDGED[name] > 0 else 'worse'}"
        for name, d in known.items()
        if d.is_beyond
    ]
    if not known or any(d.half_width is None for d in known.values()):
        return "one seed"
    return ", ".join(beyond) or "within the spread"
