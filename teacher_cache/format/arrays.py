"""The arrays of a cache: names, shapes, dtypes, keys of their objects."""

from dataclasses import dataclass

from teacher_cache.format.manifest import Manifest, TeacherIdentity

LOG_MASS_STEP = 2.0**-13
"""Log-masses are stored as multiples of this: 6.1e-5 nats off at worst, and 9.6 bytes a token instead of 16.5."""


LOG_MASS_FLOOR = -60.0
"""Stands for "no mass outside the top_k": exp(-60) is below float32's resolution of any sum here."""


SCALE_GROUP = 64
"""Channels that share a scale in int8 and int4 states: a few outlier channels then spoil their group only."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of the group; axis 0 is the row."""

    name: str
    row_shape: tuple[int, ...]
    dtype: str

    @property
    def codecs(self) -> tuple[str, ...]:
        """Names of the codecs of a chunk, in order: numbers by pcodec, bytes and bits by zstd, a checksum on both."""
        return ("numcodecs.pcodec", "crc32c") if self.is_numeric else ("bytes", "zstd", "crc32c")

    @property
    def is_numeric(self) -> bool:
        """Whether an item takes more than a byte."""
        return self.dtype not in ("bool", "int8", "uint8")

    def data_key(self, shard: int) -> str:
        """Key of the one object that holds this array's part of a shard."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.row_shape)])


def array_specs(manifest: Manifest) -> list[ArraySpec]:
    """Every array of a cache with this manifest, in the order of docs/format.md."""
    length, targets, hidden = manifest.seq_len, manifest.targets, manifest.hidden
    specs = [
        ArraySpec("tokens", (length + 1,), "uint32"),
        ArraySpec("document_start", (length,), "bool"),
        ArraySpec("loss_mask", (length,), "bool"),
    ]
    if targets.mode == "sparse":
        specs += [
            ArraySpec("logits/ids", (length, targets.entries), "uint32"),
            ArraySpec("logits/values", (length, targets.entries), targets.value_dtype),
            ArraySpec("logits/log_mass", (length, len(targets.node_temperatures)), "float32"),
        ]
    else:
        specs += _state_specs("exact/hidden", length, targets.exact_hidden, manifest.teacher)
    if hidden.mean != "none":
        specs += _state_specs("hidden/mean", hidden.positions(length), hidden.mean, manifest.teacher)
    return specs


def _state_specs(name: str, length: int, precision: str, teacher: TeacherIdentity) -> list[ArraySpec]:
    """Arrays of a hidden state: itself where lossless, else codes and the groups' scales."""
    width = teacher.hidden_size
    if precision == "lossless":
        return [ArraySpec(name, (length, width), "uint16" if teacher.dtype == "bfloat16" else teacher.dtype)]
    codes = ArraySpec(name, (length, width), "int8")
    if precision == "int4":
        codes = ArraySpec(name, (length, -(-width // 2)), "uint8")
    return [codes, ArraySpec(f"{name}_scales", (length, -(-width // SCALE_GROUP)), "float16")]


def default_rows_per_chunk(rows_per_shard: int) -> int:
    """Up to 8 rows a chunk: whole shards decode 2.5 times faster than with one row (docs/benchmarks.md)."""
    return max(rows for rows in range(1, 9) if rows_per_shard % rows == 0)
