"""The arrays of a cache: their names, shapes, dtypes, codecs and the keys of their objects."""

from dataclasses import dataclass
from typing import Literal

from teacher_cache.format.manifest import Manifest, TeacherIdentity

LOG_MASS_FLOOR = -60.0
"""Means "no mass outside the top_k": exp(-60) is below float32's resolution in every sum made of it."""

ENTRIES = ("logits/ids", "logits/values", "logits/log_mass")
"""The arrays of kept entries and log-mass, as they are filled and read."""

POSITION_NUMBERS = "logits/position"
"""Of each position: how many entries it has, and its log-mass; see `format.packing`."""

PAGE_NUMBERS = 6144
"""pcodec takes packed numbers in pages of up to so many, each with statistics of its own: one page is part empty."""

SCALE_GROUP = 64
"""Channels that share a scale where states are rounded: an outlier channel costs precision in its group only."""

ROLES = ("padding", "template", "system", "user", "assistant", "tool")
"""Whose token a position's label is, by its code in the array `role`; `template` is what belongs to nobody's words."""

CODES_PER_BYTE = {"int8": 1, "int4": 2, "int2": 4}
"""Codes of rounded states in a byte, by their precision."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of the cache; axis 0 is the row, `row_shape` the shape of one row."""

    name: str
    row_shape: tuple[int, ...]
    dtype: str
    order: Literal["plain", "packed", "columns"] = "plain"
    """How a chunk's numbers lie: as they are; without unused places, zeros behind them; by the last axis first."""

    @property
    def codecs(self) -> tuple[str, ...]:
        """Names of a chunk's codecs, in order: pcodec for wider items, zstd for bytes and booleans, then a checksum."""
        return ("numcodecs.pcodec", "crc32c") if self.is_numeric else ("bytes", "zstd", "crc32c")

    @property
    def is_numeric(self) -> bool:
        """Whether an item takes more than one byte."""
        return self.dtype not in ("bool", "int8", "uint8")

    def data_key(self, shard: int) -> str:
        """Key of the object that holds this array's rows of one shard."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.row_shape)])


def array_specs(manifest: Manifest) -> list[ArraySpec]:
    """All arrays of a cache with this manifest as they are stored, in the order of docs/format.md."""
    specs = row_specs(manifest)
    if not manifest.is_packed:
        return specs
    length, entries = manifest.seq_len, manifest.targets.entries
    packed = {
        "logits/ids": ArraySpec("logits/ids", (length, entries), "uint32", "packed"),
        "logits/values": ArraySpec("logits/values", (length, entries), manifest.targets.value_dtype, "packed"),
        "logits/log_mass": ArraySpec(
            POSITION_NUMBERS, (length, 1 + len(manifest.targets.node_temperatures)), "int32", "columns"
        ),
    }
    return [packed.get(spec.name, spec) for spec in specs]


def row_specs(manifest: Manifest) -> list[ArraySpec]:
    """All arrays as builders fill them and readers get them: each position's numbers in their own places."""
    length, targets, hidden = manifest.seq_len, manifest.targets, manifest.hidden
    specs = [
        ArraySpec("tokens", (length + 1,), "uint32"),
        ArraySpec("document_start", (length,), "bool"),
        ArraySpec("loss_mask", (length,), "bool"),
        *([ArraySpec("role", (length,), "uint8")] if manifest.rows.conversations is not None else []),
    ]
    if targets.mode == "sparse":
        specs += [
            ArraySpec("logits/ids", (length, targets.entries), "uint32"),
            ArraySpec("logits/values", (length, targets.entries), targets.value_dtype),
            ArraySpec("logits/log_mass", (length, len(targets.node_temperatures)), "float32"),
        ]
    else:
        specs += _state_specs("exact/hidden", length, manifest.hidden_size, targets.exact_hidden, manifest.teacher)
    if hidden.mean != "none":
        width = hidden.width(manifest.hidden_size)
        specs += _state_specs("hidden/mean", hidden.positions(length), width, hidden.mean, manifest.teacher)
    return specs


def _state_specs(name: str, length: int, width: int, precision: str, teacher: TeacherIdentity) -> list[ArraySpec]:
    """Arrays of a hidden state: one array if lossless, otherwise codes and the groups' scales."""
    if precision == "lossless":
        return [ArraySpec(name, (length, width), "uint16" if teacher.dtype == "bfloat16" else teacher.dtype)]
    codes = ArraySpec(name, (length, width), "int8")
    if precision in ("int4", "int2"):
        codes = ArraySpec(name, (length, -(-width // CODES_PER_BYTE[precision])), "uint8")
    return [codes, ArraySpec(f"{name}_scales", (length, -(-width // SCALE_GROUP)), "float16")]


def default_rows_per_chunk(rows_per_shard: int) -> int:
    """The largest divisor of a shard's rows up to 8: shards decode 2.5 times faster than with 1 row per chunk."""
    return max(rows for rows in range(1, 9) if rows_per_shard % rows == 0)
