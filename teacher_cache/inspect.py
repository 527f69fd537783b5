"""What a cache holds, for a person: a summary of the whole and a row's text beside the teacher's choices."""

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from transformers import AutoTokenizer

from cli_common.errors import UserError
from cli_common.progress import byte_size
from teacher_cache.format import array_specs
from teacher_cache.reader import Cache
from teacher_cache.statistics import REPORTED_TEMPERATURES, mean_statistics

CHOICES_SHOWN = 5


def summarize(cache: Cache) -> dict[str, Any]:
    """The whole cache as a JSON value: identity, extent, bytes by array, and means over all counted positions.

    Bytes are those on disk of the committed shards; `per_token` divides by counted positions. Retained mass is
    the probability on the kept entries, entropy and cross-entropy are in nats.
    """
    manifest, commits = cache.manifest, cache.commits.values()
    positions = sum(commit.positions for commit in commits)
    means = mean_statistics(commits)
    arrays = _bytes_by_array(cache, positions)
    total = sum(array["bytes"] or 0 for array in arrays.values())
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
        "shards": {"done": len(cache.commits), "planned": manifest.shard_count},
        "bytes": total,
        "bytes_per_token": total / positions if positions else None,
        "arrays": arrays,
        "retained_mass": _by_temperature(means, "retained_mass"),
        "effective_samples": _effective_samples(means),
        "entries": _entries(means),
        "entropy": _by_temperature(means, "entropy"),
        "cross_entropy": means.get("cross_entropy"),
        "agreement": means.get("agreement"),
    }


def _bytes_by_array(cache: Cache, positions: int) -> dict[str, dict[str, float | None]]:
    arrays: dict[str, dict[str, float | None]] = {}
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
    """Independent draws from p(T) that would estimate a sum as well; None where nothing is sampled or all is kept."""
    variances = _by_temperature(means, "mass_variance")
    return {t: 1 / variance if variance else None for t, variance in variances.items()}


def _entries(means: dict[str, float]) -> dict[str, float] | None:
    """Mean and standard deviation of the entries kept a position."""
    if "entries" not in means:
        return None
    spread = math.sqrt(max(0.0, means["entries_squared"] - means["entries"] ** 2))
    return {"mean": means["entries"], "standard_deviation": spread}


def render_summary(summary: dict[str, Any]) -> Group:
    """The summary as tables for a terminal."""
    return Group(_identity_table(summary), _bytes_table(summary), _temperature_table(summary))


def _identity_table(summary: dict[str, Any]) -> Table:
    teacher, tokenizer, rows = summary["teacher"], summary["tokenizer"], summary["rows"]
    shards = summary["shards"]
    table = Table(box=None, show_header=False, title=f"teacher cache {summary['path']}", title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    finished = shards["done"] == shards["planned"]
    facts = {
        "teacher": f"{teacher['name']} ({teacher['model_type']}, {teacher['num_layers']} layers × "
        f"{teacher['hidden_size']}, {teacher['dtype']}, weights {teacher['weights_sha256'][:12]})",
        "tokenizer": f"{tokenizer['vocab_size']:,} tokens of {teacher['padded_vocab_size']:,} head rows "
        f"({tokenizer['sha256'][:12]})",
        "corpus": _corpus_words(summary["corpus"]),
        "rows": f"{summary['rows_done']:,} of {rows['count']:,}, {rows['mode']}, {rows['seq_len']} positions each",
        "tokens": f"{summary['tokens']:,} counted positions",
        "targets": _target_words(summary),
        "hidden states": _hidden_words(summary["hidden"]),
        "shards": f"{shards['done']:,} of {shards['planned']:,}" + ("" if finished else " — unfinished"),
        "size": _size_words(summary),
        "fingerprint": summary["fingerprint"][:16],
    }
    for name, words in facts.items():
        table.add_row(name, words)
    return table


def _corpus_words(corpus: dict[str, Any]) -> str:
    words = [str(corpus.get("source", "?"))]
    words += [f"{key} {corpus[key]}" for key in ("subset", "split", "revision") if corpus.get(key)]
    return ", ".join(words)


def _target_words(summary: dict[str, Any]) -> str:
    targets, entries = summary["targets"], summary["entries"]
    low, high = min(targets["node_temperatures"]), max(targets["node_temperatures"])
    right = f"right for T in [{low:g}, {high:g}]"
    if targets["mode"] == "exact":
        return f"final hidden state, {targets['exact_hidden']}; exact at every T"
    sampled = f" and up to {targets['samples']} sampled" if targets["samples"] else ""
    kept = f"; {entries['mean']:.1f} ± {entries['standard_deviation']:.1f} kept a position" if entries else ""
    return f"top {targets['top_k']}{sampled} as {targets['value_dtype']}{kept}; {right}"


def _hidden_words(hidden: dict[str, Any]) -> str:
    every = "" if hidden["stride"] == 1 else f", every {hidden['stride']} positions"
    return f"mean over layers, {hidden['mean']}{every}" if hidden["mean"] != "none" else "none"


def _size_words(summary: dict[str, Any]) -> str:
    if not summary["tokens"]:
        return "nothing yet"
    return f"{byte_size(summary['bytes'])}, {summary['bytes_per_token']:.1f} bytes a token"


def _bytes_table(summary: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("array")
    for heading in ("bytes", "bytes a token", "compression"):
        table.add_column(heading, justify="right")
    for name, array in summary["arrays"].items():
        if array["per_token"] is not None:
            table.add_row(name, f"{array['bytes']:,}", f"{array['per_token']:.2f}", f"{array['ratio']:.1f} ×")
    return table


def _temperature_table(summary: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("temperature")
    for temperature in REPORTED_TEMPERATURES:
        table.add_column(f"{temperature:g}", justify="right")
    lines = {
        "retained mass": ("retained_mass", "{:.2%}"),
        "effective samples": ("effective_samples", "{:,.0f}"),
        "teacher entropy (nats)": ("entropy", "{:.3f}"),
    }
    for words, (name, form) in lines.items():
        cells = ["" if value is None else form.format(value) for value in summary[name].values()]
        if any(cells):
            table.add_row(words, *cells)
    cross_entropy = summary["cross_entropy"]
    if cross_entropy is not None:
        table.add_row("teacher cross-entropy", f"{cross_entropy:.3f} (perplexity {math.exp(cross_entropy):.1f})")
        table.add_row("first choice is next", f"{summary['agreement']:.1%}")
    return table


@dataclass(frozen=True)
class PositionView:
    """One position of a row: its token, the next one, and the teacher's first choices with p at T = 1."""

    position: int
    token: str
    following: str
    counted: bool
    choices: list[tuple[str, float]]
    remaining_mass: float

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def view_row(cache: Cache, row: int, first: int = 0, last: int | None = None) -> list[PositionView]:
    """Positions first..last of a row as text; raises `UserError` naming `--row` or `--tokens` when out of range."""
    length = cache.manifest.seq_len
    last = length if last is None else last
    if not -len(cache) <= row < len(cache):
        raise UserError(f"--row {row}: the cache has rows 0 to {len(cache) - 1}")
    if not 0 <= first < last <= length:
        raise UserError(f"--tokens {first}:{last}: a row has positions 0:{length}")
    decode, shown = _token_decoder(cache), min(CHOICES_SHOWN, cache.layout.top_k)
    stored, targets = cache[row], cache.targets([row], temperature=_usual_temperature(cache))
    chances = targets.probabilities[0]
    return [
        PositionView(
            position=t,
            token=decode(int(stored.tokens[t])),
            following=decode(int(stored.tokens[t + 1])),
            counted=bool(stored.loss_mask[t]),
            choices=[(decode(int(targets.ids[0, t, k])), float(chances[t, k])) for k in range(shown)],
            remaining_mass=max(0.0, 1 - float(chances[t].sum())),
        )
        for t in range(first, last)
    ]


def _usual_temperature(cache: Cache) -> float:
    """1, or where a cache was made for other temperatures the lowest of them."""
    nodes = cache.manifest.node_temperatures
    return 1.0 if min(nodes) <= 1 <= max(nodes) else min(nodes)


def _token_decoder(cache: Cache) -> Any:
    if cache.tokenizer_folder is None:
        return lambda token: f"<{token}>"
    tokenizer = AutoTokenizer.from_pretrained(cache.tokenizer_folder)
    return lambda token: tokenizer.decode([token])


def render_row(views: list[PositionView]) -> Table:
    """A row as a table: each token, the next one, the first choices (the right one marked) and what is left."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("t", "token", "next"):
        table.add_column(heading)
    table.add_column("the teacher's first choices at T = 1")
    table.add_column("rest", justify="right")
    for view in views:
        if not view.counted:
            table.add_row(str(view.position), _shown(view.token), _shown(view.following), "masked", "")
            continue
        choices = Text("  ").join(
            Text(f"{_shown(word)} {p:.2f}", style="bold green" if word == view.following else "")
            for word, p in view.choices
        )
        table.add_row(
            str(view.position),
            _shown(view.token),
            _shown(view.following),
            choices,
            f"{view.remaining_mass:.3f}",
        )
    return table


def _shown(text: str) -> str:
    """Text with its white space visible: `␣the`, `⏎`."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


def print_json(value: Any) -> None:
    """A JSON value on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_tables(*tables: Any) -> None:
    """Tables on stdout, as wide as the terminal."""
    Console().print(*tables, sep="\n")
