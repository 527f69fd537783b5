"""The cache format as code: manifest, commit records, array names, shapes and dtypes, log-mass nodes.

docs/format.md says the same in words. Both packages read this file and nothing else binds them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from cli_common.errors import UserError

FORMAT_NAME = "teacher-cache"
FORMAT_VERSION = 1

ALIGNMENT = (
    "position t holds the teacher's distribution of token t+1 given tokens 0..t of the same row; "
    "tokens has one more column than the other arrays; positions where loss_mask is false hold zeros; "
    "hidden/mean is the mean over layers of the state after each layer, the last one after the final norm"
)

LOG_MASS_FLOOR = -60.0
"""Stands for "no mass outside the top_k": exp(-60) is below float32's resolution of any sum here."""

TEMPERATURE_RANGE = (0.95, 2.2)
"""Temperatures the log-mass nodes cover; interpolation beyond it would be extrapolation."""

FROZEN_WEIGHTS_KEY = "teacher/frozen.safetensors"
TOKENIZER_FOLDER = "teacher/tokenizer"
COMMITS_FOLDER = "commits"

Floating = NDArray[np.floating[Any]]


class CacheError(UserError):
    """A cache that cannot be used as asked."""


class CacheFormatError(CacheError):
    """No cache, or one of a format this version does not know."""


class CacheUnfinishedError(CacheError):
    """A cache whose build has shards left to do."""


class CacheCorruptError(CacheError):
    """A cache whose bytes are not those that were written."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TeacherIdentity(_Record):
    """What computed the targets; other weights, dtype or attention kernel make another cache."""

    name: str
    revision: str | None
    model_type: str
    config_sha256: str
    weights_sha256: str
    dtype: Literal["float32", "bfloat16", "float16"]
    attention: str
    hidden_size: int
    num_layers: int
    num_heads: int
    padded_vocab_size: int


class TokenizerIdentity(_Record):
    """The token map; `sha256` covers every token, its id and the special ids."""

    sha256: str
    vocab_size: int
    eos_token_id: int
    pad_token_id: int
    has_files: bool


class RowLayout(_Record):
    """How documents became rows, and how rows are cut into shards and chunks."""

    mode: Literal["packed", "document"]
    seq_len: int
    count: int
    rows_per_shard: int
    rows_per_chunk: int

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if min(self.seq_len, self.count, self.rows_per_shard, self.rows_per_chunk) < 1:
            raise ValueError("sizes must be at least 1")
        if self.rows_per_shard % self.rows_per_chunk:
            raise ValueError("rows_per_shard must be a multiple of rows_per_chunk")
        return self


class TargetLayout(_Record):
    """What is kept of each distribution."""

    top_k: int
    samples: int
    value_dtype: Literal["float16", "float32"]
    node_temperatures: tuple[float, ...]

    @property
    def entries(self) -> int:
        """Places a position has for kept entries, K."""
        return self.top_k + self.samples


class HiddenLayout(_Record):
    """What is kept of the averaged hidden states."""

    mean: Literal["none", "lossless"]


class Manifest(_Record):
    """Everything a reader needs to decode the cache and to know what made it: the group's attributes."""

    format: Literal["teacher-cache"]
    format_version: int
    alignment: str
    teacher: TeacherIdentity
    tokenizer: TokenizerIdentity
    corpus: dict[str, Any]
    rows: RowLayout
    targets: TargetLayout
    hidden: HiddenLayout
    compute: dict[str, Any]
    files: dict[str, str]
    """Digest (xxh3-128) of each file under teacher/."""

    @property
    def seq_len(self) -> int:
        return self.rows.seq_len

    @property
    def top_k(self) -> int:
        return self.targets.top_k

    @property
    def samples(self) -> int:
        return self.targets.samples

    @property
    def vocab_size(self) -> int:
        """Real tokens: ids 0 .. vocab_size - 1."""
        return self.tokenizer.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the teacher's embedding and LM head."""
        return self.teacher.padded_vocab_size

    @property
    def hidden_size(self) -> int:
        return self.teacher.hidden_size

    @property
    def num_layers(self) -> int:
        return self.teacher.num_layers

    @property
    def num_heads(self) -> int:
        return self.teacher.num_heads

    @property
    def node_temperatures(self) -> tuple[float, ...]:
        return self.targets.node_temperatures

    @property
    def teacher_name(self) -> str:
        return self.teacher.name

    @property
    def eos_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_sha256(self) -> str:
        return self.tokenizer.sha256

    @property
    def shard_count(self) -> int:
        return -(-self.rows.count // self.rows.rows_per_shard)

    def shard_rows(self, shard: int) -> range:
        """Rows of one shard; the last shard may be shorter."""
        first = shard * self.rows.rows_per_shard
        return range(first, min(first + self.rows.rows_per_shard, self.rows.count))

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest: the identity a student's checkpoint is tied to."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()


class StoredObject(_Record):
    """One object of a shard: its size and digest (xxh3-128, hexadecimal)."""

    bytes: int
    xxh3_128: str


class CommitRecord(_Record):
    """Written last: the shard counts only when this exists."""

    shard: int
    first_row: int
    rows: int
    positions: int
    """Positions whose loss_mask is true."""
    objects: dict[str, StoredObject]
    statistics: dict[str, float]
    """Sums over the shard's counted positions, see `statistics.shard_statistics`."""
    environment: dict[str, str]
    """Versions, device and threads the shard was computed with."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of the group; axis 0 is the row."""

    name: str
    row_shape: tuple[int, ...]
    dtype: str

    def data_key(self, shard: int) -> str:
        """Key of the one object that holds this array's part of a shard."""
        return "/".join([self.name, "c", str(shard), *("0" for _ in self.row_shape)])


def array_specs(manifest: Manifest) -> list[ArraySpec]:
    """Every array of a cache with this manifest, in the order of docs/format.md."""
    length, targets = manifest.seq_len, manifest.targets
    specs = [
        ArraySpec("tokens", (length + 1,), "uint32"),
        ArraySpec("document_start", (length,), "bool"),
        ArraySpec("loss_mask", (length,), "bool"),
        ArraySpec("logits/ids", (length, targets.entries), "uint32"),
        ArraySpec("logits/values", (length, targets.entries), targets.value_dtype),
        ArraySpec("logits/log_mass", (length, len(targets.node_temperatures)), "float32"),
    ]
    if manifest.hidden.mean == "lossless":
        stored = "uint16" if manifest.teacher.dtype == "bfloat16" else manifest.teacher.dtype
        specs.append(ArraySpec("hidden/mean", (length, manifest.hidden_size), stored))
    return specs


def default_rows_per_chunk(rows_per_shard: int) -> int:
    """Up to 8 rows a chunk: whole shards decode 2.5 times faster than with one row (docs/benchmarks.md)."""
    return max(rows for rows in range(1, 9) if rows_per_shard % rows == 0)


def commit_key(shard: int) -> str:
    """Key of a shard's commit record."""
    return f"{COMMITS_FOLDER}/{shard:05d}.json"


def parse_manifest(attributes: Mapping[str, Any], where: str) -> Manifest:
    """Manifest from a Zarr group's attributes.

    Raises `CacheFormatError` when the group is no cache or of another format version.
    """
    if attributes.get("format") != FORMAT_NAME:
        raise CacheFormatError(f"{where}: a Zarr group, but no teacher cache; give the folder that build wrote")
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        remedy = "update this package" if isinstance(version, int) and version > FORMAT_VERSION else "rebuild the cache"
        raise CacheFormatError(f"{where}: format version {version}, this package reads {FORMAT_VERSION}; {remedy}")
    try:
        return Manifest.model_validate(dict(attributes))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise CacheCorruptError(f"{where}: manifest key {key}: {problem['msg']}; rebuild the cache") from error


def parse_commit(data: bytes, where: str) -> CommitRecord:
    """Commit record from its bytes; raises `CacheCorruptError`."""
    try:
        return CommitRecord.model_validate_json(data)
    except ValidationError as error:
        raise CacheCorruptError(f"{where}: not a commit record; remove it and build again") from error


def canonical_json(value: Any) -> bytes:
    """One spelling of a JSON value, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def chebyshev_temperatures(nodes: int = 5) -> tuple[float, ...]:
    """Temperatures of the log-mass nodes, Chebyshev in beta = 1/T over the cached range, ascending."""
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    angles = (2 * np.arange(nodes) + 1) * np.pi / (2 * nodes)
    betas = (low + high) / 2 + (high - low) / 2 * np.cos(angles)
    return tuple(float(t) for t in 1 / betas)


def interpolation_weights(node_temperatures: Sequence[float], temperature: float) -> NDArray[np.float64]:
    """Weights w with A(1/T) = log_mass @ w, the polynomial through the nodes in beta = 1/T.

    Returns (J,) float64. Raises `UserError` outside the cached range of temperatures.
    """
    return _basis(node_temperatures) @ _powers(_scaled(temperature), len(node_temperatures))


def derivative_weights(node_temperatures: Sequence[float], temperature: float) -> NDArray[np.float64]:
    """Weights w with dA/dbeta at 1/T = log_mass @ w; the derivative gives the teacher's entropy at T."""
    x, nodes = _scaled(temperature), len(node_temperatures)
    exponents = np.arange(nodes)
    powers = np.where(exponents == 0, 0.0, exponents * x ** np.maximum(exponents - 1, 0))
    return _basis(node_temperatures) @ powers * _SCALE


_SCALE = 2 / (1 / TEMPERATURE_RANGE[0] - 1 / TEMPERATURE_RANGE[1])


def _scaled(temperature: float) -> float:
    low, high = TEMPERATURE_RANGE
    if not low <= temperature <= high:
        raise UserError(f"temperature {temperature:g} is outside the cached range {low:g} to {high:g}")
    return (1 / temperature - (1 / low + 1 / high) / 2) * _SCALE


def _powers(x: float, count: int) -> NDArray[np.float64]:
    return x ** np.arange(count, dtype=np.float64)


def _basis(node_temperatures: Sequence[float]) -> NDArray[np.float64]:
    """Row j: coefficients of the polynomial that is 1 at node j and 0 at the others, in scaled beta."""
    vandermonde = np.stack([_powers(_scaled(t), len(node_temperatures)) for t in node_temperatures], axis=1)
    inverse: NDArray[np.float64] = np.linalg.inv(vandermonde).astype(np.float64)
    return inverse
