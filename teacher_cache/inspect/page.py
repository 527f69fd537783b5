"""A cache as one page for a browser: it needs no network, and text from the cache cannot run in it."""

from pathlib import Path
from typing import Any

from delta_common.errors import UserError
from delta_common.files import write_atomically
from delta_common.html.markup import Markup, element, join
from delta_common.html.page import fill_page, pairs, table
from delta_common.progress import byte_size
from teacher_cache.format.commits import REPORTED_TEMPERATURES
from teacher_cache.inspect.charts import line_chart, share_bar, strip
from teacher_cache.inspect.curves import Curves, temperature_curves
from teacher_cache.inspect.shards import ShardFigure, shard_figures
from teacher_cache.inspect.summary import Summary, corpus_words, identity_facts, summarize, temperature_lines
from teacher_cache.inspect.tokens import TokenData, token_data
from teacher_cache.read.cache import Cache


def parse_rows(rows: str | None) -> list[int] | None:
    """Row numbers from `0,5,9`; raises `UserError` naming `--rows`."""
    if rows is None:
        return None
    try:
        return [int(row) for row in rows.split(",")]
    except ValueError:
        raise UserError(f"--rows {rows}: expected row numbers separated by commas, such as 0,5,9") from None


def write_page(cache: Cache, path: Path, rows: list[int] | None, span: tuple[int, int | None] | None) -> str:
    """Write the page, whole or not at all; return what it shows, in words. Raises `UserError` naming `--html`."""
    tokens = token_data(cache, rows, span)
    page = render_page(cache, tokens).encode()
    try:
        write_atomically(path, page)
    except OSError as error:
        raise UserError(f"--html {path}: cannot be written ({error.strerror}); choose another file") from error
    return f"{path}: {byte_size(len(page))}" + (f"; shows {'; '.join(tokens.cut)}" if tokens.cut else "")


def render_page(cache: Cache, tokens: TokenData) -> str:
    """The whole page as HTML."""
    summary, curves, figures = summarize(cache), temperature_curves(cache), shard_figures(cache)
    return fill_page(
        "teacher_cache.inspect",
        "inspect",
        data={**tokens.json, "curves": _curve_data(curves)},
        name=join(summary["teacher"]["name"]),
        corpus=join(corpus_words(summary["corpus"])),
        path=join(summary["path"]),
        figures=_key_figures(summary),
        cut=join("Shown: ", "; ".join(tokens.cut), ".") if tokens.cut else "",
        temperature=_temperature_section(summary, curves),
        bytes=_bytes_section(summary),
        shards=_shards_section(summary, figures),
        facts=pairs(identity_facts(summary)),
        **_slider(tokens.json),
    )


def _curve_data(curves: Curves | None) -> dict[str, list[float]]:
    if curves is None:
        return {}
    measures = {"entropy": curves.entropy, "retained_mass": curves.retained_mass}
    means = {name: [round(v, 5) for v in curve.mean.tolist()] for name, curve in measures.items() if curve}
    return {"temperatures": curves.temperatures.tolist(), **means}


def _slider(data: dict[str, Any]) -> dict[str, str]:
    return {name: f"{data[name]:g}" for name in ("lowest", "highest")} | {"chosen": f"{data['temperature']:g}"}


def _key_figures(summary: Summary) -> Markup:
    retained, entropy = summary["retained_mass"], summary["entropy"]
    sizes: dict[str, tuple[float | None, str]] = {
        "tokens": (summary["tokens"], "{:,}"),
        "bytes per token": (summary["bytes_per_token"], "{:.1f}"),
    }
    if summary["roles"] is not None:
        sizes = {
            "tokens that count": (summary["tokens"], "{:,}"),
            "of all tokens": (summary["tokens"] / max(1, summary["text_tokens"]), "{:.1%}"),
            "bytes per counted token": (summary["bytes_per_token"], "{:.1f}"),
        }
    candidates = {
        **sizes,
        "retained mass, T = 1": (retained["1"], "{:.1%}"),
        "retained mass, T = 2": (retained["2"], "{:.1%}"),
        "entropy, T = 1, nats": (entropy["1"], "{:.2f}"),
        "cross-entropy, nats": (summary["cross_entropy"], "{:.2f}"),
        "first choice is next": (summary["agreement"], "{:.1%}"),
    }
    known = {name: form.format(value) for name, (value, form) in candidates.items() if value is not None}
    return pairs(known, "figures")


def _temperature_section(summary: Summary, curves: Curves | None) -> Markup:
    if curves is None:
        return element("p", "No shard is built yet.")
    temperatures = curves.temperatures.tolist()
    charts = []
    if curves.retained_mass is not None:
        chart = line_chart(
            temperatures, curves.retained_mass, summary["retained_mass"], "Retained mass over temperature", percent=True
        )
        charts.append(_figure("Retained mass", "retained_mass", chart))
    chart = line_chart(
        temperatures, curves.entropy, summary["entropy"], "The teacher's entropy over temperature", percent=False
    )
    charts.append(_figure("Entropy, nats", "entropy", chart))
    note = (
        f"Line: mean of {curves.positions:,} positions of {curves.rows} rows; band: 8 of 10 of them. "
        f"Dots: mean of all {summary['tokens']:,} positions, from the commit records."
    )
    rows = [[words, *cells] for words, cells in temperature_lines(summary).items()]
    headings = ["temperature", *(f"{t:g}" for t in REPORTED_TEMPERATURES)]
    means = table("Means over all counted positions", headings, rows)
    return join(element("div", *charts, class_="charts"), element("p", note, class_="note"), means)


def _figure(name: str, measure: str, chart: Markup) -> Markup:
    reading = element("output", data_measure=measure)
    return element("figure", element("figcaption", element("b", name), " ", reading), chart)


def _bytes_section(summary: Summary) -> Markup:
    if not summary["bytes"]:
        return element("p", "Nothing is stored yet.")
    rows = []
    for name, array in summary["arrays"].items():
        share = array["bytes"] / summary["bytes"]
        known = array["per_token"] is not None
        per_token = f"{array['per_token']:.2f}" if known else ""
        ratio = f"{array['ratio']:.1f} ×" if array["ratio"] else ""
        rows.append([name, share_bar(share), f"{share:.1%}", per_token, f"{array['bytes']:,}", ratio])
    per_token = "bytes per token" if summary["roles"] is None else "bytes per counted token"
    headings = ["array", "", "share", per_token, "bytes", "compression"]
    return table(f"{byte_size(summary['bytes'])} in {summary['shards']['done']:,} shards", headings, rows, "drawn")


def _shards_section(summary: Summary, figures: list[ShardFigure]) -> Markup:
    if not figures:
        return element("p", "No shard is built yet.")
    rows = [
        [
            figure.name,
            strip(figure),
            figure.words(figure.median),
            f"{figure.words(min(figure.values.values()))} to {figure.words(max(figure.values.values()))}",
        ]
        for figure in figures
    ]
    headings = ["figure", "lowest to highest, one dot per shard", "median", "range"]
    each = table("Each shard's mean; the upright line is the median", headings, rows, "drawn")
    unusual = summary["unusual"]
    if not unusual:
        return join(each, element("p", "No shard stands out.", class_="note"))
    listed = element("ul", *(element("li", sentence) for sentence in unusual), class_="unusual")
    return join(each, element("h3", "Shards that stand out"), listed)
