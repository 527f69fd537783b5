"""Training runs as one page for a browser, without a network: curves, held-out numbers, text, costs, settings."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from delta_common.differences import flatten
from delta_common.errors import UserError
from delta_common.files import write_atomically
from delta_common.html.markup import Markup, element, join
from delta_common.html.page import fill_page, pairs, table
from delta_common.progress import byte_size, duration
from student.report.charts import LEFT, RIGHT, WIDTH, axes, figure, legend, line_class
from student.report.series import MOST_POINTS, Chart, charts
from student.run.by_cache import LAST_STEPS, TRAINED_CACHE_WORDS, cells_by_cache, means_by_cache
from student.run.files import Provenance, RunFiles, Sample
from student.run.measure_words import MEASURE_WORDS
from student.run.records import StepCost
from student.run.student_words import beginning_words, cache_names, stage_words, student_words

REPORT_FILE = "report.html"
NONE = "–"
COST_SUMS = ("tokens", "seconds", "waiting")


def write_report(runs: Sequence[RunFiles], path: Path) -> int:
    """Write the page of one or several runs, whole or not at all; return its size in bytes.

    Raises `UserError` when the file cannot be written.
    """
    page = render_report(runs).encode()
    try:
        write_atomically(path, page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file with --out") from error
    return len(page)


def render_report(runs: Sequence[RunFiles]) -> str:
    """The whole page as HTML."""
    names, drawn = _names(runs), charts(runs)
    return fill_page(
        "student.report",
        "report",
        data={"names": names, "charts": [_data(chart) for chart in drawn], "width": WIDTH},
        title=join(" and ".join(names)),
        path=join(*(f"{run.path} " for run in runs)),
        figures=_key_figures(runs[0]) if len(runs) == 1 else legend(names, "Runs"),
        held_out=_held_out(runs, names),
        charts=join(_by_cache(runs, names), _charts(drawn, runs)),
        text=_text(runs, names),
        costs=_costs(runs, names),
        settings=_settings(runs, names),
        identity=_identity(runs, names),
    )


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Folders' names, or whole paths where two are called the same."""
    short = [run.path.resolve().name for run in runs]
    return short if len(set(short)) == len(runs) else [str(run.path) for run in runs]


def _data(chart: Chart) -> dict[str, Any]:
    """What the script reads: lines, and where steps and values are on the chart."""
    x, y = axes(chart)
    lines = [asdict(line) | {"class": line_class(line.number)} for line in chart.lines]
    for line in lines:
        line["name"] = None if line["cache"] is None else chart.caches[line["cache"]]
    return {"lines": lines, "x": asdict(x), "y": asdict(y), "left": LEFT, "right": WIDTH - RIGHT}


def _key_figures(run: RunFiles) -> Markup:
    facts = {"steps": f"{_steps(run):,}", "tokens": f"{sum(record.get('tokens', 0) for record in run.metrics):,}"}
    if run.evaluations:
        last = next(iter(run.held_out.values())).records[-1]
        facts |= {words: form.format(last[key]) for key, (words, form) in MEASURE_WORDS.items() if key in last}
    return pairs(facts, "figures")


def _steps(run: RunFiles) -> int:
    return max((int(record.get("step", 0)) for record in run.metrics), default=0)


def _held_out(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup:
    rows, teachers = [], []
    for run, name in zip(runs, names, strict=True):
        several = len(run.held_out) > 1
        caches = cache_names([each.path for each in run.held_out.values()])
        for (key, found), cache in zip(run.held_out.items(), caches, strict=True):
            where = ", ".join([*([name] if len(runs) > 1 else []), *([cache] if several else [])])
            for record in found.records[:1] + found.records[1:][-1:]:
                rows.append([f"{where and where + ', '}after {record['step']:,} steps", *_measured(record)])
            known = _teacher_on(run, key)
            if known and known not in teachers:
                teachers.append(known)
                rows.append([f"the teacher, on the text of {where}" if where else "the teacher", *_measured(known)])
    if not rows:
        return element("p", "Nothing was measured: no evaluation.cache was set.")
    note = element("p", "These runs were measured on different rows: their numbers cannot be compared.", class_="note")
    headings = ["", *(words for words, _ in MEASURE_WORDS.values())]
    return join(table("Means over all counted positions", headings, rows), None if _same_rows(runs) else note)


def _teacher_on(run: RunFiles, cache: str) -> dict[str, float] | None:
    """The teacher's own numbers on a held-out cache, by its fingerprint."""
    if run.summary is None:
        return None
    return run.summary.teacher_measures_by_cache.get(cache, run.summary.teacher_measures)


def _same_rows(runs: Sequence[RunFiles]) -> bool:
    """Whether all runs were measured on the same rows of the same caches throughout."""
    keys = [run.held_out.keys() for run in runs if run.held_out]
    rows = {(str(record.get("cache")), record.get("rows")) for run in runs for record in run.evaluations}
    return all(each == keys[0] for each in keys) and len(rows) == len({cache for cache, _ in rows})


def _measured(record: dict[str, Any]) -> list[str]:
    return [form.format(record[key]) if key in record else NONE for key, (_, form) in MEASURE_WORDS.items()]


def _by_cache(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup | None:
    """What runs on several caches read of each, and what the loss on its rows came to."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        caches = run.provenance.caches if run.provenance else ()
        each = zip(
            cache_names([cache.path for cache in caches]),
            cells_by_cache(caches, means_by_cache(run.metrics)),
            strict=True,
        )
        rows += [[cache if len(runs) == 1 else f"{name}, {cache}", *cells] for cache, cells in each]
    caption = f"Caches trained on together; means over up to {LAST_STEPS} last steps"
    return table(caption, ["", *TRAINED_CACHE_WORDS], rows) if rows else None


def _charts(drawn: Sequence[Chart], runs: Sequence[RunFiles]) -> Markup:
    if not drawn:
        return element("p", "No step has been taken yet.")
    longest = max(len(run.metrics) for run in runs)
    thinned = f" Each point is the mean of about {longest / MOST_POINTS:.0f} steps." if longest > MOST_POINTS else ""
    hint = f"Point at a chart to read it at a step, or reach one by Tab and go on by the arrow keys.{thinned}"
    figures = element("div", *(figure(chart, number) for number, chart in enumerate(drawn)), class_="charts")
    return join(element("p", hint, class_="note"), figures)


def _text(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup:
    parts = []
    for run, name in zip(runs, names, strict=True):
        samples = run.summary.samples if run.summary else []
        if samples and len(runs) > 1:
            parts.append(element("h3", name))
        parts += [_sample(sample) for sample in samples]
    if not parts:
        return element("p", "No sample of text: the run has not finished, or its cache has no tokenizer.")
    words = (
        "A held-out beginning in grey, then how the student goes on: its likeliest tokens, and tokens drawn at T = 1."
    )
    return join(element("p", words, class_="note"), *parts)


def _sample(sample: Sample) -> Markup:
    continued = {"likeliest": sample.likeliest, "drawn": sample.drawn}
    entries = []
    for name, words in continued.items():
        text = element("dd", element("span", _one_line(sample.prompt), class_="prompt"), _one_line(words), dir="auto")
        entries.append(element("div", element("dt", name), text))
    return element("dl", *entries, class_="sample")


def _one_line(text: str) -> str:
    """Line breaks as a sign: a student that repeats itself may write nothing else."""
    return text.replace("\n", "⏎")


def _costs(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup:
    timed = [(name, _cost_words(run)) for run, name in zip(runs, names, strict=True) if run.costs]
    if not timed:
        return element("p", "No step has been timed.")
    shown = [heading for heading in timed[0][1] if heading != "MFU" or any(words["MFU"] != NONE for _, words in timed)]
    headings, rows = ["", *shown], [[name, *(words[heading] for heading in shown)] for name, words in timed]
    return table("Steps alone, without evaluations and checkpoints; memory of the first process", headings, rows)


def _cost_words(run: RunFiles) -> dict[str, str]:
    """By heading."""
    tokens, seconds, waiting = (sum(getattr(cost, name) for cost in run.costs) for name in COST_SUMS)
    return {
        "steps timed": f"{len(run.costs):,} of {_steps(run):,}",
        "time of the steps": duration(seconds),
        "tokens per second": f"{tokens / seconds:,.0f}",
        "MFU": _mfu(run.costs),
        "waiting for data": f"{waiting / seconds:.1%}",
        "peak memory": byte_size(max(cost.peak_bytes for cost in run.costs)),
        "on": "; ".join(dict.fromkeys(cost.machine for cost in run.costs)),
    }


def _mfu(costs: Sequence[StepCost]) -> str:
    """Over the steps that it is known of."""
    known = [(cost.mfu * cost.seconds, cost.seconds) for cost in costs if cost.mfu is not None]
    used, seconds = (sum(column) for column in zip(*known, strict=True)) if known else (0.0, 0.0)
    return f"{used / seconds:.1%}" if seconds else NONE


def _settings(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup:
    """All settings of one run; of several those that differ."""
    flat = [flatten(run.settings.model_dump(mode="json")) for run in runs]
    if len(runs) == 1:
        return pairs({key: _value(value) for key, value in flat[0].items()}, "settings")
    keys = [key for key in flat[0] if len({_value(settings.get(key)) for settings in flat}) > 1]
    if not keys:
        return element("p", "All runs have the same settings.")
    rows = [[key, *(_value(settings.get(key)) for settings in flat)] for key in keys]
    return table("Settings that differ", ["", *names], rows)


def _value(value: Any) -> str:
    return NONE if value is None else value if isinstance(value, str) else json.dumps(value)


def _identity(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup:
    facts = [_facts(run) for run in runs]
    if len(runs) == 1:
        return pairs(facts[0])
    rows = [[key, *(fact[key] for fact in facts)] for key in facts[0]]
    return element("div", table("What they were trained on", ["", *names], rows), class_="identity")


def _facts(run: RunFiles) -> dict[str, str]:
    summary, known = run.summary, run.summary or run.provenance
    return {
        "teacher": known.teacher if known else NONE,
        "student": student_words(run.settings.model),
        "began with": beginning_words(run.settings.model, known.begun_from if known else ()),
        "stages": stage_words(run.plan.stages if run.plan else ()) or NONE,
        "parameters trained": f"{summary.trainable_parameters:,} of {summary.total_parameters:,}" if summary else NONE,
        "cache": _each_cache(known, "path", known.cache) if known else NONE,
        "fingerprint of the cache": _each_cache(known, "fingerprint", known.cache_fingerprint) if known else NONE,
        "fingerprint of the held-out cache": "; ".join(run.held_out) or NONE,
    }


def _each_cache(known: Provenance, name: str, alone: str) -> str:
    """What is known of every cache trained on, or of the one there is."""
    return "; ".join(str(getattr(cache, name)) for cache in known.caches) or alone
