"""What a cache holds, for a person: a summary of the whole as a JSON value and as tables for a terminal."""

import math
from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from delta_common.progress import byte_size
from teacher_cache.format.arrays import ROLES, array_specs
from teacher_cache.format.commits import REPORTED_TEMPERATURES, mean_statistics
from teacher_cache.format.nodes import expected_error
from teacher_cache.inspect.shards import ShardRange, outlier_sentences, shard_figures, shards_to_json
from teacher_cache.read.cache import Cache

LARGE_PERPLEXITY = 1e6
"""Above it a perplexity is written with an exponent."""
LARGE_ERROR = 0.01
"""Nats of log Z between the cached temperatures from which on the expected error is shown."""

Identity = Mapping[str, Any]
"""A section of the manifest, or the corpus description, as its JSON value."""


class ArraySize(TypedDict):
    """Bytes of one array in the committed shards, stored and without compression."""

    bytes: int
    raw_bytes: int
    per_token: float | None
    ratio: float | None


class ShardCount(TypedDict):
    """Shards built, and shards of the finished cache."""

    done: int
    planned: int


class EntryCount(TypedDict):
    """Kept entries per counted position."""

    mean: float
    standard_deviation: float


class Summary(TypedDict):
    """A whole cache as a JSON value; means are over counted positions, None where nothing gives them."""

    path: str
    format_version: int
    fingerprint: str
    teacher: Identity
    tokenizer: Identity
    corpus: Identity
    rows: Identity
    targets: Identity
    hidden: Identity
    rows_done: int
    tokens: int
    """Counted positions."""
    text_tokens: int
    """Positions whose label is no padding."""
    padding: float | None
    """Share of all positions whose label is padding."""
    roles: dict[str, int] | None
    """Positions by the role of their label, without padding; None where documents are plain text."""
    shards: ShardCount
    expected_error: float
    """About the largest error of log Z between the cached temperatures, in nats; 0 in exact mode."""
    bytes: int
    bytes_per_token: float | None
    """Per counted position."""
    bytes_per_text_token: float | None
    arrays: dict[str, ArraySize]
    retained_mass: dict[str, float | None]
    effective_samples: dict[str, float | None]
    entries: EntryCount | None
    entropy: dict[str, float | None]
    cross_entropy: float | None
    agreement: float | None
    by_shard: dict[str, ShardRange]
    unusual: list[str]


def summarize(cache: Cache) -> Summary:
    """The whole cache as a JSON value: identity, extent, bytes by array, and means over all counted positions.

    Bytes are those of the committed shards as stored; `per_token` divides them by counted positions. Retained mass is
    the probability of the kept entries; entropy and cross-entropy are in nats.
    """
    manifest, commits = cache.manifest, cache.commits.values()
    positions = sum(commit.positions for commit in commits)
    means = mean_statistics(commits)
    arrays = _bytes_by_array(cache, positions)
    total = sum(array["bytes"] for array in arrays.values())
    extent, roles = sum(commit.rows for commit in commits) * manifest.seq_len, _roles(cache)
    text_tokens = positions if roles is None else sum(roles.values())
    figures = shard_figures(cache)
    return {
        "path": str(cache.path),
        "format_version": manifest.format_version,
        "fingerprint": cache.fingerprint,
        "teacher": manifest.teacher.model_dump(mode="json"),
        "tokenizer": manifest.tokenizer.model_dump(mode="json"),
        "corpus": manifest.corpus,
        "rows": manifest.rows.model_dump(mode="json"),
        "targets": manifest.targets.model_dump(mode="json"),
        "hidden": manifest.hidden.model_dump(mode="json"),
        "rows_done": sum(commit.rows for commit in commits),
        "tokens": positions,
        "text_tokens": text_tokens,
        "padding": 1 - text_tokens / extent if extent else None,
        "roles": roles,
        "shards": {"done": len(cache.commits), "planned": manifest.shard_count},
        "expected_error": expected_error(cache.layout.node_temperatures) if cache.layout.mode == "sparse" else 0.0,
        "bytes": total,
        "bytes_per_token": total / positions if positions else None,
        "bytes_per_text_token": total / text_tokens if text_tokens else None,
        "arrays": arrays,
        "retained_mass": _by_temperature(means, "retained_mass"),
        "effective_samples": _effective_samples(means),
        "entries": _entries(means),
        "entropy": _by_temperature(means, "entropy"),
        "cross_entropy": means.get("cross_entropy"),
        "agreement": means.get("agreement"),
        "by_shard": shards_to_json(figures),
        "unusual": outlier_sentences(cache, figures),
    }


def _roles(cache: Cache) -> dict[str, int] | None:
    """Positions of the committed shards by the role of their label, without padding."""
    if cache.manifest.rows.conversations is None:
        return None
    counted = [commit.roles or {} for commit in cache.commits.values()]
    return {role: sum(roles.get(role, 0) for roles in counted) for role in ROLES if role != "padding"}


def _bytes_by_array(cache: Cache, positions: int) -> dict[str, ArraySize]:
    arrays: dict[str, ArraySize] = {}
    for spec in array_specs(cache.manifest):
        commits = cache.commits.items()
        stored = sum(commit.objects[spec.data_key(shard)].bytes for shard, commit in commits)
        raw = sum(commit.rows for _, commit in commits) * math.prod(spec.row_shape) * np.dtype(spec.dtype).itemsize
        arrays[spec.name] = {
            "bytes": stored,
            "raw_bytes": raw,
            "per_token": stored / positions if positions else None,
            "ratio": raw / stored if stored else None,
        }
    return arrays


def _by_temperature(means: dict[str, float], name: str) -> dict[str, float | None]:
    return {f"{t:g}": means.get(f"{name}@{t:g}") for t in REPORTED_TEMPERATURES}


def _effective_samples(means: dict[str, float]) -> dict[str, float | None]:
    """Independent draws from p(T) that would estimate a sum as well; None where no entry is sampled."""
    variances = _by_temperature(means, "mass_variance")
    return {t: 1 / variance if variance else None for t, variance in variances.items()}


def _entries(means: dict[str, float]) -> EntryCount | None:
    if "entries" not in means:
        return None
    spread = math.sqrt(max(0.0, means["entries_squared"] - means["entries"] ** 2))
    return {"mean": means["entries"], "standard_deviation": spread}


def render_summary(summary: Summary) -> Group:
    """The summary as tables for a terminal."""
    tables = [_identity_table(summary), _bytes_table(summary), _temperature_table(summary)]
    if summary["by_shard"]:
        tables.append(_shards_table(summary))
    unusual = [Padding(Text(f"unusual: {sentence}"), (0, 0, 0, 2)) for sentence in summary["unusual"]]
    return Group(*tables, *unusual)


def identity_facts(summary: Summary) -> dict[str, str]:
    """What made the cache and how much of it is built, in words by name."""
    teacher, tokenizer, rows = summary["teacher"], summary["tokenizer"], summary["rows"]
    shards = summary["shards"]
    finished = shards["done"] == shards["planned"]
    return {
        "teacher": f"{teacher['name']} ({teacher['model_type']}, {teacher['num_layers']} layers × "
        f"{teacher['hidden_size']}, {teacher['dtype']}, weights {teacher['weights_sha256'][:12]})",
        "tokenizer": f"{tokenizer['vocab_size']:,} tokens of {teacher['padded_vocab_size']:,} head rows "
        f"({tokenizer['sha256'][:12]})",
        "corpus": corpus_words(summary["corpus"]),
        "rows": f"{summary['rows_done']:,} of {rows['count']:,}, {rows['mode']}, {rows['seq_len']} positions each",
        "tokens": _token_words(summary),
        **_role_words(summary),
        "targets": _target_words(summary),
        **_error_words(summary),
        "hidden states": _hidden_words(summary["hidden"]),
        "shards": f"{shards['done']:,} of {shards['planned']:,}" + ("" if finished else " — unfinished"),
        "size": _size_words(summary),
        "format": f"version {summary['format_version']}",
        "fingerprint": summary["fingerprint"][:16],
    }


def _identity_table(summary: Summary) -> Table:
    title = Text(f"teacher cache {summary['path']}", style="italic")
    table = Table(box=None, show_header=False, title=title, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in identity_facts(summary).items():
        table.add_row(name, Text(words))
    return table


def corpus_words(corpus: Identity) -> str:
    """Where the text came from."""
    words = [str(corpus.get("source", "?"))]
    words += [f"{key} {corpus[key]}" for key in ("subset", "split", "revision") if corpus.get(key)]
    return ", ".join(words)


def _token_words(summary: Summary) -> str:
    if summary["padding"] is None:
        return "none yet"
    counted = f"{summary['tokens']:,} counted positions"
    if summary["roles"] is not None:
        counted += f" of {summary['text_tokens']:,} ({summary['tokens'] / summary['text_tokens']:.1%})"
    return f"{counted}, {summary['padding']:.1%} of positions are padding"


def _role_words(summary: Summary) -> dict[str, str]:
    """Who speaks the tokens of conversations, and which of them count."""
    roles, layout = summary["roles"], summary["rows"].get("conversations")
    if not roles or layout is None or not summary["text_tokens"]:
        return {}
    shares = [f"{role} {count / summary['text_tokens']:.1%}" for role, count in roles.items() if count]
    counts = {"all": "all count", "assistant": "answers count", "last": "last answers count"}[layout["loss_on"]]
    return {"roles": f"{', '.join(shares)}; {counts}"}


def _target_words(summary: Summary) -> str:
    targets, entries = summary["targets"], summary["entries"]
    low, high = min(targets["node_temperatures"]), max(targets["node_temperatures"])
    right = f"right for T in [{low:g}, {high:g}]"
    if targets["mode"] == "exact":
        return f"final hidden state, {targets['exact_hidden']}; exact at every T"
    sampled = f" and up to {targets['samples']} sampled" if targets["samples"] else ""
    kept = f"; {entries['mean']:.1f} ± {entries['standard_deviation']:.1f} kept per position" if entries else ""
    return f"top {targets['top_k']}{sampled} as {targets['value_dtype']}{kept}; {right}"


def _error_words(summary: Summary) -> dict[str, str]:
    """A warning where targets between the cached temperatures are only about right."""
    if summary["expected_error"] <= LARGE_ERROR:
        return {}
    right = ", ".join(f"{t:g}" for t in sorted(summary["targets"]["node_temperatures"]))
    return {"expected error": f"log Z up to about {summary['expected_error']:g} nats; right at T = {right}"}


def _hidden_words(hidden: Identity) -> str:
    every = "" if hidden["stride"] == 1 else f", every {hidden['stride']} positions"
    drawn = f", {hidden['channels']['drawn']} channels per position" if "channels" in hidden else ""
    return f"mean over layers, {hidden['mean']}{drawn}{every}" if hidden["mean"] != "none" else "none"


def _size_words(summary: Summary) -> str:
    if not summary["tokens"]:
        return "nothing yet"
    if summary["roles"] is None:
        return f"{byte_size(summary['bytes'])}, {summary['bytes_per_token']:.1f} bytes per token"
    per_token = (
        f"{summary['bytes_per_token']:.1f} bytes per counted token, {summary['bytes_per_text_token']:.1f} per token"
    )
    return f"{byte_size(summary['bytes'])}, {per_token}"


def _table(first: str, *figures: str) -> Table:
    """A table of names and figures whose cells wrap rather than being cut off."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _bytes_table(summary: Summary) -> Table:
    per_token = "bytes per token" if summary["roles"] is None else "bytes per counted token"
    table = _table("array", "bytes", per_token, "share", "compression")
    for name, array in summary["arrays"].items():
        if array["per_token"] is not None:
            share = f"{array['bytes'] / summary['bytes']:.1%}"
            table.add_row(name, f"{array['bytes']:,}", f"{array['per_token']:.2f}", share, f"{array['ratio']:.1f} ×")
    return table


def temperature_lines(summary: Summary) -> dict[str, list[str]]:
    """What the cache holds at the reported temperatures, in words by name; empty where a temperature is not cached."""
    forms = {
        "retained mass": (summary["retained_mass"], "{:.2%}"),
        "effective samples": (summary["effective_samples"], "{:,.0f}"),
        "teacher entropy (nats)": (summary["entropy"], "{:.3f}"),
    }
    lines = {
        words: ["" if value is None else form.format(value) for value in by_temperature.values()]
        for words, (by_temperature, form) in forms.items()
    }
    return {words: cells for words, cells in lines.items() if any(cells)}


def _temperature_table(summary: Summary) -> Table:
    table = _table("temperature", *(f"{temperature:g}" for temperature in REPORTED_TEMPERATURES))
    for words, cells in temperature_lines(summary).items():
        table.add_row(words, *cells)
    cross_entropy = summary["cross_entropy"]
    if cross_entropy is not None:
        table.add_row("teacher cross-entropy", f"{cross_entropy:.3f} (perplexity {_perplexity(cross_entropy)})")
        table.add_row("first choice is next", f"{summary['agreement']:.1%}")
    return table


def _perplexity(cross_entropy: float) -> str:
    """exp of it in words; above 709 nats that is no longer a number."""
    with np.errstate(over="ignore"):
        value = float(np.exp(cross_entropy))
    return f"{value:.1f}" if value < LARGE_PERPLEXITY else f"{value:.3g}"


def _shards_table(summary: Summary) -> Table:
    table = _table("over shards", "median", "±", "lowest", "highest", "unusual")
    for name, figure in summary["by_shard"].items():
        cells = [figure["form"].format(figure[key]) for key in ("median", "deviation", "lowest", "highest")]
        table.add_row(name, *cells, str(len(figure["outliers"]) or ""))
    return table
