"""The cache format as code: manifest, commit records, array names, shapes and dtypes, log-mass nodes.

docs/format.md says the same in words. Both packages read this file and nothing else binds them.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from delta_common.errors import UserError

FORMAT_NAME = "teacher-cache"
FORMAT_VERSION = 1

ALIGNMENT = (
    "position t holds the teacher's distribution of token t+1 given tokens 0..t of the same row, "
    "or of the same document in that row where rows.context says so; "
    "tokens has one more column than the other arrays; positions where loss_mask is false hold zeros; "
    "hidden/mean is the mean over layers of the state after each layer, the last one after the final norm"
)

LOG_MASS_STEP = 2.0**-13
"""Log-masses are stored as multiples of this: 6.1e-5 nats off at worst, and 9.6 bytes a token instead of 16.5."""

LOG_MASS_FLOOR = -60.0
"""Stands for "no mass outside the top_k": exp(-60) is below float32's resolution of any sum here."""

FROZEN_WEIGHTS_KEY = "teacher/frozen.safetensors"
TOKENIZER_FOLDER = "teacher/tokenizer"
COMMITS_FOLDER = "commits"
CORPUS_FOLDER = "corpus"
CORPUS_ROWS_KEY = f"{CORPUS_FOLDER}/rows.json"
POSITIONS_FOLDER = f"{CORPUS_FOLDER}/positions"
LOCKS_FOLDER = ".locks"
GROUP_KEY = "zarr.json"

SCALE_GROUP = 64
"""Channels that share a scale in int8 and int4 states: a few outlier channels then spoil their group only."""


REPAIR = "teacher-cache repair rebuilds what is damaged"


class CacheError(UserError):
    """A cache that cannot be used as asked."""


class CacheFormatError(CacheError):
    """No cache, or one of a format this version does not know."""


class CacheUnfinishedError(CacheError):
    """A cache whose build has shards left to do."""


class CacheCorruptError(CacheError):
    """A cache whose bytes are not those that were written."""


class Record(BaseModel):
    """What is stored as JSON: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TeacherIdentity(Record):
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


class TokenizerIdentity(Record):
    """The token map; `sha256` covers every token, its id and the special ids."""

    sha256: str
    vocab_size: int
    eos_token_id: int
    pad_token_id: int
    has_files: bool


class RowLayout(Record):
    """How documents became rows, and how rows are cut into shards and chunks."""

    mode: Literal["packed", "document"]
    context: Literal["row", "document"]
    """What a position sees of its row: all before it, or its own document only."""
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


class TargetLayout(Record):
    """What is kept of each distribution."""

    mode: Literal["sparse", "exact"]
    """`sparse`: kept entries and log-mass; `exact`: the final hidden state, from which the LM head gives all."""
    top_k: int
    """Largest logits kept with certainty."""
    samples: int
    """Further places a position has for sampled entries, n."""
    proposal: tuple[tuple[float, float], ...]
    """(temperature, share) of the mixture r that entries are drawn from."""
    seed: int
    """Of the sampling's random numbers, which are keyed by (seed, row, position)."""
    value_dtype: Literal["float16", "float32"]
    node_temperatures: tuple[float, ...]
    """Temperatures of the log-mass, equally spaced in 1/T; targets are right between the first and the last."""
    exact_hidden: Literal["none", "lossless", "int8"]
    """Precision of the final hidden state in exact mode."""

    @property
    def entries(self) -> int:
        """Places a position has for kept entries, K."""
        return self.top_k + self.samples

    @model_validator(mode="after")
    def _is_decodable(self) -> Self:
        if self.top_k < 1 or self.samples < 0:
            raise ValueError("top_k must be at least 1 and samples at least 0")
        if len(self.node_temperatures) < 2 or min(self.node_temperatures) <= 0:
            raise ValueError("at least two positive node temperatures are needed")
        if self.samples and abs(sum(share for _, share in self.proposal) - 1) > 1e-6:
            raise ValueError("the proposal's shares must sum to 1")
        return self


class HiddenLayout(Record):
    """What is kept of the averaged hidden states."""

    mean: Literal["none", "lossless", "int8", "int4"]
    stride: int
    """Every stride-th position is kept, from position 0 on."""

    def positions(self, seq_len: int) -> int:
        """Positions a row keeps."""
        return -(-seq_len // self.stride)


class Manifest(Record):
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
    """Digest (xxh3-128) of each object that belongs to no shard: the teacher's files and the arrays' metadata."""

    @model_validator(mode="after")
    def _files_stay_inside(self) -> Self:
        for key in self.files:
            if not is_plain_key(key):
                raise ValueError(f"files: {key!r} is no key of this cache")
        return self

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
        """sha256 of the manifest, which is stored beside it: what a student's checkpoint is tied to."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()

    @property
    def identity(self) -> str:
        """sha256 of all that decides a row: the manifest without the number of rows and the arrays' metadata.

        Commit records carry it, so that a shard of another cache is noticed.
        """
        content = self.to_json()
        del content["rows"]["count"]
        content["files"] = {key: value for key, value in self.files.items() if not is_metadata_key(key)}
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def attributes(self) -> dict[str, Any]:
        """What the group's attributes hold: the manifest and its fingerprint."""
        return {**self.to_json(), "fingerprint": self.fingerprint}


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


def metadata_key(array: str) -> str:
    """Key of an array's metadata."""
    return f"{array}/{GROUP_KEY}"


def is_metadata_key(key: str) -> bool:
    """Whether a key is the metadata of an array or a group."""
    return key.rpartition("/")[2] == GROUP_KEY


def is_plain_key(key: str) -> bool:
    """Whether a key is a relative path of plain names, so that it cannot lead out of the cache."""
    return re.fullmatch(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*", key, re.ASCII) is not None


def digest(data: bytes | bytearray | memoryview) -> str:
    """xxh3-128 in hexadecimal: what commit records and the manifest name objects by."""
    return xxhash.xxh3_128_hexdigest(data)


def parse_manifest(attributes: Mapping[str, Any], where: str) -> Manifest:
    """Manifest from a Zarr group's attributes.

    Raises `CacheFormatError` when the group is no cache or of another format version, and `CacheCorruptError` when
    its content is not what was written.
    """
    if attributes.get("format") != FORMAT_NAME:
        raise CacheFormatError(f"{where}: a Zarr group, but no teacher cache; give the folder that build wrote")
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        remedy = "update this package" if isinstance(version, int) and version > FORMAT_VERSION else "rebuild the cache"
        raise CacheFormatError(f"{where}: format version {version}, this package reads {FORMAT_VERSION}; {remedy}")
    content = dict(attributes)
    fingerprint = content.pop("fingerprint", None)
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise CacheCorruptError(f"{where}: manifest key {key}: {problem['msg']}; {REPAIR}") from error
    if manifest.fingerprint != fingerprint:
        raise CacheCorruptError(f"{where}: the manifest does not match its fingerprint; {REPAIR}")
    return manifest


def load_json(data: bytes) -> Any:
    """A stored document; raises `ValueError` also where a number is not spelled as it was written.

    Doubles have several spellings of 17 digits: a digest of values would not notice one turning into another.
    """
    try:
        return json.loads(data, parse_float=_spelled_float)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _spelled_float(text: str) -> float:
    value = float(text)
    if repr(value) != text:
        raise ValueError(f"{text} is spelled {value!r}")
    return value


def canonical_json(value: Any) -> bytes:
    """One spelling of a JSON value, so that equal values have equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
