"""What differs between two caches, in settings and in content."""

from collections.abc import Mapping
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from delta_common.differences import differences
from teacher_cache.format.arrays import array_specs
from teacher_cache.inspect.entries import RowEntries, row_entries
from teacher_cache.inspect.summary import ShardCount, summarize
from teacher_cache.read.cache import Cache
from teacher_cache.targets import estimate

SAMPLED_ROWS = 16
SLICE_POSITIONS = 64
"""Positions compared at once: each needs a table of the whole vocabulary."""
SLICE_ROWS = 256
"""Rows of tokens compared at once."""


class Extent(TypedDict):
    """Identity and size of one of the two; the fields are those of `Summary`."""

    path: str
    fingerprint: str
    rows_done: int
    tokens: int
    shards: ShardCount
    bytes: int
    bytes_per_token: float | None


class Distances(TypedDict):
    """How far the distributions of B are from those of A, means over `positions` counted positions of `rows` rows.

    Both are seen through the entries that both keep and one bucket for all others, which can only bring them closer:
    total variation and KL (nats, of B from A) are lower bounds.
    """

    rows: int
    positions: int
    total_variation: float
    kl: float
    agreement: float
    common_entries: float
    common_mass: float
    largest_total_variation: float
    largest_value_difference: float


class Content(TypedDict):
    """Rows that both have, those of equal tokens, [equal, all] objects by array, and `Distances` over a sample."""

    common_rows: int
    equal_tokens: int
    equal_objects: dict[str, list[int]]
    temperature: float | None
    distributions: Distances | None


class Comparison(TypedDict):
    """Two caches side by side; `settings` has [A, B] of each manifest key that differs.

    `content` is None where rows cannot be compared, and `not_compared` says why.
    """

    a: Extent
    b: Extent
    settings: dict[str, list[object]]
    not_compared: str | None
    content: Content | None


def compare_caches(a: Cache, b: Cache) -> Comparison:
    """Both caches side by side as a JSON value."""
    reason = _why_not(a, b)
    rows = None if reason else _common_rows(a, b)
    return {
        "a": _extent(a),
        "b": _extent(b),
        "settings": {key: [one, other] for key, one, other in differences(a.manifest.to_json(), b.manifest.to_json())},
        "not_compared": reason,
        "content": None if rows is None else _content(a, b, rows),
    }


def _extent(cache: Cache) -> Extent:
    summary = summarize(cache)
    return {
        "path": summary["path"],
        "fingerprint": summary["fingerprint"],
        "rows_done": summary["rows_done"],
        "tokens": summary["tokens"],
        "shards": summary["shards"],
        "bytes": summary["bytes"],
        "bytes_per_token": summary["bytes_per_token"],
    }


def _why_not(a: Cache, b: Cache) -> str | None:
    """Why rows of the two cannot be compared, or None."""
    first, second = a.manifest, b.manifest
    if first.tokenizer.sha256 != second.tokenizer.sha256:
        return "their tokenizers differ, so an id means another token"
    if first.vocab_size != second.vocab_size:
        return f"their vocabularies differ: {first.vocab_size:,} and {second.vocab_size:,} tokens"
    if first.seq_len != second.seq_len:
        return f"their rows differ in length: {first.seq_len} and {second.seq_len} positions"
    return None


def _common_rows(a: Cache, b: Cache) -> NDArray[np.int64]:
    first, second = ({row for rows in cache.shards for row in rows} for cache in (a, b))
    return np.array(sorted(first & second), dtype=np.int64)


def _content(a: Cache, b: Cache, rows: NDArray[np.int64]) -> Content:
    equal = _rows_of_equal_tokens(a, b, rows)
    sample = equal[np.unique(np.linspace(0, len(equal) - 1, min(SAMPLED_ROWS, len(equal))).astype(int))]
    temperature = _common_temperature(a, b)
    return {
        "common_rows": len(rows),
        "equal_tokens": len(equal),
        "equal_objects": _equal_objects(a, b),
        "temperature": temperature,
        "distributions": None if temperature is None else _distances(a, b, sample, temperature),
    }


def _rows_of_equal_tokens(a: Cache, b: Cache, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    equal = [rows[:0]]
    for start in range(0, len(rows), SLICE_ROWS):
        part = rows[start : start + SLICE_ROWS]
        equal.append(part[(a.tokens(part) == b.tokens(part)).all(axis=1)])
    return np.concatenate(equal)


def _equal_objects(a: Cache, b: Cache) -> dict[str, list[int]]:
    """By array: objects equal by digest, and objects of shards that both have with the same rows."""
    shards = [s for s in a.commits if s in b.commits and a.manifest.shard_rows(s) == b.manifest.shard_rows(s)]
    others = {spec.name for spec in array_specs(b.manifest)}
    found = {}
    for spec in array_specs(a.manifest):
        if spec.name in others:
            keys = [(shard, spec.data_key(shard)) for shard in shards]
            equal = [a.commits[s].objects[key] == b.commits[s].objects[key] for s, key in keys]
            found[spec.name] = [sum(equal), len(equal)]
    return found


def _common_temperature(a: Cache, b: Cache) -> float | None:
    """1 where both caches cover it, else the lowest temperature that both cover, or None."""
    low = max(min(cache.manifest.node_temperatures) for cache in (a, b))
    high = min(max(cache.manifest.node_temperatures) for cache in (a, b))
    if low > high:
        return None
    return 1.0 if low <= 1 <= high else low


def _distances(a: Cache, b: Cache, rows: NDArray[np.int64], temperature: float) -> Distances | None:
    """`Distances` over the counted positions of some rows; None where there are none."""
    found = [part for row in rows for part in _row_distances(a, b, int(row), temperature)]
    if not found:
        return None
    columns = {name: torch.cat([part[name] for part in found]).double() for name in found[0]}
    means = {name: float(column.mean()) for name, column in columns.items()}
    return {
        "rows": len(rows),
        "positions": len(columns["kl"]),
        "total_variation": means["total_variation"],
        "kl": means["kl"],
        "agreement": means["agreement"],
        "common_entries": means["common_entries"],
        "common_mass": means["common_mass"],
        "largest_total_variation": float(columns["total_variation"].max()),
        "largest_value_difference": float(columns["value_difference"].max()),
    }


def _row_distances(a: Cache, b: Cache, row: int, temperature: float) -> list[dict[str, Tensor]]:
    counted = torch.from_numpy(np.flatnonzero(a[row].loss_mask & b[row].loss_mask))
    first, second = (row_entries(cache, row).at(counted) for cache in (a, b))
    parts = [slice(start, start + SLICE_POSITIONS) for start in range(0, len(counted), SLICE_POSITIONS)]
    return [position_distances(first.at(p), second.at(p), a.manifest.vocab_size, temperature) for p in parts]


def position_distances(a: RowEntries, b: RowEntries, vocab_size: int, temperature: float) -> dict[str, Tensor]:
    """The measures of `Distances` at each of n positions, (n,) each."""
    values, chances = (_by_id(a, table, vocab_size, b.ids) for table in (a.values, _probabilities(a, temperature)))
    own = _probabilities(b, temperature)
    common = ~values.isnan() & (b.values > -torch.inf)
    p, q = (torch.where(common, table, 0.0) for table in (chances, own))
    outside_p, outside_q = ((1 - table.sum(-1)).clamp(min=0) for table in (p, q))
    return {
        "total_variation": ((p - q).abs().sum(-1) + (outside_p - outside_q).abs()) / 2,
        "kl": _relative_entropy(p, q).sum(-1) + _relative_entropy(outside_p, outside_q),
        "agreement": a.ids[:, 0] == b.ids[:, 0],
        "common_entries": common.sum(-1),
        "common_mass": p.sum(-1),
        "value_difference": torch.where(common, (values - b.values).abs(), 0.0).amax(-1),
    }


def _probabilities(entries: RowEntries, temperature: float) -> Tensor:
    return torch.exp(estimate.log_probabilities(entries.values, entries.log_mass, entries.layout, temperature))


def _by_id(entries: RowEntries, table: Tensor, vocab_size: int, wanted: Tensor) -> Tensor:
    """Values of `table` (n, K), which belongs to `entries`, at the wanted ids (n, K'); nan where one is not kept."""
    used = entries.values > -torch.inf
    beyond = torch.where(used, entries.ids, vocab_size)
    by_id = torch.full((len(table), vocab_size + 1), torch.nan).scatter_(1, beyond, table)
    by_id[:, vocab_size] = torch.nan
    return by_id.gather(1, wanted)


def _relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """`p log(p/q)` with 0 log 0 = 0; float32's smallest number stands for q = 0."""
    tiny = torch.finfo(p.dtype).tiny
    return torch.where(p > 0, p * (p.clamp(min=tiny).log() - q.clamp(min=tiny).log()), 0.0)


def render_comparison(compared: Comparison) -> Group:
    """The comparison as tables for a terminal."""
    parts: list[RenderableType] = [_extent_table(compared), _settings_table(compared["settings"])]
    content = compared["content"]
    if content is None:
        parts.append(Text(f"  content is not compared: {compared['not_compared']}"))
    else:
        parts += [_objects_table(content), _content_table(content)]
    return Group(*parts)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for at, heading in enumerate(headings):
        table.add_column(heading, overflow="fold", no_wrap=at == 0)
    return table


def _extent_table(compared: Comparison) -> Table:
    table = _table("", "A", "B")
    sides = [_extent_words(side) for side in (compared["a"], compared["b"])]
    for name in sides[0]:
        table.add_row(name, *(Text(side[name]) for side in sides))
    return table


def _extent_words(side: Extent) -> dict[str, str]:
    return {
        "path": side["path"],
        "fingerprint": side["fingerprint"][:16],
        "rows": f"{side['rows_done']:,}",
        "tokens": f"{side['tokens']:,}",
        "shards": f"{side['shards']['done']:,} of {side['shards']['planned']:,}",
        "bytes per token": f"{side['bytes_per_token']:.1f}" if side["tokens"] else "",
    }


def _settings_table(settings: Mapping[str, list[object]]) -> Table | Text:
    if not settings:
        return Text("  settings are the same")
    table = _table("setting", "A", "B")
    for key, values in settings.items():
        table.add_row(Text(key), *(Text(_value_words(value)) for value in values))
    return table


def _value_words(value: object) -> str:
    """A setting's value; digests by their beginning."""
    if value is None:
        return "–"
    if isinstance(value, list):
        return ", ".join(_value_words(item) for item in value)
    words = f"{value:g}" if isinstance(value, float) else str(value)
    is_digest = len(words) >= 32 and set(words) <= set("0123456789abcdef")
    return words[:12] if is_digest else words


def _objects_table(content: Content) -> Table | Text:
    objects = content["equal_objects"]
    if not any(total for _, total in objects.values()):
        return Text("  no shard holds the same rows in both: objects are not compared")
    table = _table("array", "equal objects")
    for name, (equal, total) in objects.items():
        table.add_row(name, f"{equal:,} of {total:,} ({equal / total:.0%})")
    return table


def _content_table(content: Content) -> Table:
    table = _table("content", "")
    share = f"{content['equal_tokens']:,} of {content['common_rows']:,}"
    table.add_row("common rows with equal tokens", share)
    distances, temperature = content["distributions"], content["temperature"]
    if distances is None:
        reason = "no temperature is cached in both" if temperature is None else "no row has equal tokens"
        table.add_row("distributions", f"not compared: {reason}")
        return table
    table.add_row("distributions compared", f"{distances['positions']:,} positions of {distances['rows']} rows")
    table.add_row(
        "entries in both", f"{distances['common_entries']:.1f} per position, {distances['common_mass']:.1%} of A"
    )
    far = f"at least {distances['total_variation']:.5f}, where largest {distances['largest_total_variation']:.5f}"
    table.add_row(f"total variation at T = {temperature:g}", far)
    table.add_row(f"KL of B from A at T = {temperature:g}", f"at least {distances['kl']:.5f} nats")
    table.add_row("same first choice", f"{distances['agreement']:.1%}")
    table.add_row("largest difference of a logit", f"{distances['largest_value_difference']:.4f}")
    return table
