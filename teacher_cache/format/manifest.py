"""The manifest: what made a cache, and all that is needed to decode it.

docs/format.md says the same in words; the other modules of `format` follow from the manifest.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from delta_common.logits.transform import LogitTransform
from teacher_cache.format.errors import REPAIR, CacheCorruptError, CacheFormatError
from teacher_cache.format.keys import is_metadata_key, is_plain_key
from teacher_cache.format.nodes import FINEST_STEP, log_mass_step
from teacher_cache.format.sealed import Record, canonical_json

FORMAT_NAME = "teacher-cache"
FORMAT_VERSION = 2
"""Of caches that are begun now; a cache is continued in the version it was begun in."""

KNOWN_VERSIONS = (1, FORMAT_VERSION)
"""Versions that are read and continued; `format.arrays` says where they differ."""

ALIGNMENT = (
    "position t holds the teacher's distribution of token t+1 given tokens 0..t of the same row, "
    "or of the same document in that row where rows.context says so; "
    "tokens has one more column than the other arrays; positions where loss_mask is false hold zeros; "
    "hidden/mean is the mean over layers of the state after each layer, the last one after the final norm"
)


class TeacherIdentity(Record):
    """What computed the targets; with other weights, another dtype or attention kernel it is another cache."""

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
    embedding_scale: float | None = None
    """What the first layer reads over the token embedding, such as √d for Gemma; None for the embedding itself."""
    logit_transform: LogitTransform | None = None
    """What lies between the LM head's product and the logits, as in Gemma 2 or Granite; None for nothing."""

    quantization: str | None = None
    """How weights are packed as they run, such as `bitsandbytes`; None where all are numbers of `dtype`."""

    @model_serializer(mode="wrap")
    def _without_what_older_caches_lack(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        """What is absent is left out: fingerprints of caches from before it was known stay what they are."""
        content: dict[str, object] = write(self)
        for name in ("embedding_scale", "logit_transform", "quantization"):
            if content[name] is None:
                del content[name]
        return content


class TokenizerIdentity(Record):
    """The tokenizer; `sha256` covers all that tokenizes (`delta_common.tokenizer.tokenizer_digest`)."""

    sha256: str
    vocab_size: int
    eos_token_id: int
    pad_token_id: int
    has_files: bool


class ConversationLayout(Record):
    """What rows of conversations have that rows of text have not."""

    loss_on: Literal["all", "assistant", "last"]
    """Which tokens count: all, those of the assistant's answers, or those of each conversation's last answer."""
    truncate_at: Literal["turn", "token"]
    """Where a conversation longer than a row was cut."""


class RowLayout(Record):
    """How documents were turned into rows, and rows divided into shards and chunks."""

    mode: Literal["packed", "document"]
    context: Literal["row", "document"]
    """What a position sees: all earlier tokens of its row, or only those of its own document."""
    seq_len: int
    count: int
    rows_per_shard: int
    rows_per_chunk: int
    conversations: ConversationLayout | None = None
    """None where documents are plain text, all of which counts; else there is an array `role`."""

    @model_serializer(mode="wrap")
    def _without_what_text_lacks(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        content: dict[str, object] = write(self)
        if self.conversations is None:
            del content["conversations"]
        return content

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
    """`sparse`: some entries and log-mass; `exact`: the final hidden state, from which the LM head gives all logits."""
    top_k: int
    """Largest logits kept with certainty."""
    samples: int
    """Places per position for sampled entries, n."""
    proposal: tuple[tuple[float, float], ...]
    """(temperature, share) of each part of the mixture r that entries are drawn from."""
    seed: int
    """Seed of the random numbers for sampling and rounding, which depend on (seed, row, position) only."""
    value_dtype: Literal["float16", "float32"]
    node_temperatures: tuple[float, ...]
    """Temperatures log-mass is stored at, equally spaced in 1/T; targets are valid from the lowest to the highest."""
    exact_hidden: Literal["none", "lossless", "int8"]
    """Precision of the final hidden state in exact mode."""
    log_mass_step: float = FINEST_STEP
    """Log-masses are rounded to multiples of this."""

    @model_serializer(mode="wrap")
    def _without_what_version_1_lacks(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        """The step of version 1 is left out: fingerprints of its caches stay what they are."""
        content: dict[str, object] = write(self)
        if self.log_mass_step == FINEST_STEP:
            del content["log_mass_step"]
        return content

    @property
    def entries(self) -> int:
        """Places per position for kept entries, K."""
        return self.top_k + self.samples

    @model_validator(mode="after")
    def _is_decodable(self) -> Self:
        if self.top_k < 1 or self.samples < 0:
            raise ValueError("top_k must be at least 1 and samples at least 0")
        if len(self.node_temperatures) < 2 or min(self.node_temperatures) <= 0:
            raise ValueError("at least two positive node temperatures are needed")
        if not 0 < self.log_mass_step <= 1:
            raise ValueError("log_mass_step must be above 0 and at most 1")
        if self.samples and abs(sum(share for _, share in self.proposal) - 1) > 1e-6:
            raise ValueError("the proposal's shares must sum to 1")
        return self


OFFSETS = 256
"""Sets of channels that a position's states may be drawn from: one random byte names the set."""


class ChannelSampling(Record):
    """Which channels of an averaged hidden state are kept at a position."""

    drawn: int
    """Channels kept at each position, k."""
    counts: tuple[int, ...]
    """For each channel, in how many of the `OFFSETS` sets it is: it is drawn with probability count / OFFSETS."""
    exponents: tuple[int, ...]
    """For each channel, the power of two that its values are divided by before they are rounded."""

    @model_validator(mode="after")
    def _sets_are_full(self) -> Self:
        if self.drawn < 1 or not all(1 <= count <= OFFSETS for count in self.counts):
            raise ValueError(f"every channel must be in 1 to {OFFSETS} sets")
        if sum(self.counts) != OFFSETS * self.drawn or len(self.counts) != len(self.exponents):
            raise ValueError("the sets must hold `drawn` channels each, with an exponent for every channel")
        return self


class HiddenLayout(Record):
    """What is kept of the averaged hidden states."""

    mean: Literal["none", "lossless", "int8", "int4", "int2"]
    stride: int
    """Every stride-th position is kept, beginning with one drawn for the row; in format version 1 with position 0."""
    channels: ChannelSampling | None = None
    """Which channels are kept; None for all of them."""

    def positions(self, seq_len: int) -> int:
        """Places per row for positions that are kept; the last may be unused."""
        return -(-seq_len // self.stride)

    def width(self, hidden_size: int) -> int:
        """Channels kept at each position."""
        return hidden_size if self.channels is None else self.channels.drawn

    @model_serializer(mode="wrap")
    def _without_what_older_caches_lack(self, write: SerializerFunctionWrapHandler) -> dict[str, object]:
        content: dict[str, object] = write(self)
        if self.channels is None:
            del content["channels"]
        return content


class Manifest(Record):
    """Everything a reader needs to decode the cache and to know what made it; stored as the Zarr group's attributes."""

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
    """Digests (xxh3-128) of the objects that belong to no shard: the teacher's files and the arrays' metadata."""

    @model_validator(mode="after")
    def _channels_are_the_teachers(self) -> Self:
        channels = self.hidden.channels
        if channels is not None and len(channels.counts) != self.teacher.hidden_size:
            raise ValueError(f"hidden.channels: of {len(channels.counts)} channels, not {self.teacher.hidden_size}")
        return self

    @model_validator(mode="after")
    def _files_stay_inside(self) -> Self:
        for key in self.files:
            if not is_plain_key(key):
                raise ValueError(f"files: {key!r} is not a valid key")
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
        """Number of real tokens, with ids 0 to vocab_size - 1."""
        return self.tokenizer.vocab_size

    @property
    def padded_vocab_size(self) -> int:
        """Number of rows of the teacher's embedding and LM head."""
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
    def is_packed(self) -> bool:
        """Whether entries are stored without their unused places, see `format.packing`."""
        return self.format_version > 1 and self.targets.mode == "sparse"

    @property
    def shard_count(self) -> int:
        return -(-self.rows.count // self.rows.rows_per_shard)

    def shard_rows(self, shard: int) -> range:
        """Row numbers of one shard; the last shard may be shorter."""
        first = shard * self.rows.rows_per_shard
        return range(first, min(first + self.rows.rows_per_shard, self.rows.count))

    def in_version(self, version: int) -> "Manifest":
        """The manifest of the same rows and targets in another of `KNOWN_VERSIONS`, as the same settings give it."""
        targets = self.targets
        step = FINEST_STEP if version == 1 else log_mass_step(len(targets.node_temperatures))
        targets = targets.model_copy(update={"log_mass_step": step})
        return self.model_copy(update={"format_version": version, "targets": targets})

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest, stored beside it; a student's checkpoint names it."""
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()

    @property
    def identity(self) -> str:
        """sha256 of everything a row depends on: the manifest without the number of rows and the arrays' metadata.

        Commit records contain it, so that a shard of another cache is noticed.
        """
        content = self.to_json()
        del content["rows"]["count"]
        content["files"] = {key: value for key, value in self.files.items() if not is_metadata_key(key)}
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def attributes(self) -> dict[str, Any]:
        """The Zarr group's attributes: the manifest and its fingerprint."""
        return {**self.to_json(), "fingerprint": self.fingerprint}


def parse_manifest(attributes: Mapping[str, object], where: str) -> Manifest:
    """The manifest in a Zarr group's attributes.

    Raises `CacheFormatError` when the group is not a cache or has another format version, and `CacheCorruptError`
    when the manifest is invalid or does not match its fingerprint.
    """
    if attributes.get("format") != FORMAT_NAME:
        raise CacheFormatError(f"{where}: a Zarr group, but not a teacher cache; give the folder that build wrote")
    version = attributes.get("format_version")
    if version not in KNOWN_VERSIONS:
        remedy = "update this package" if isinstance(version, int) and version > FORMAT_VERSION else "rebuild the cache"
        known = " and ".join(map(str, KNOWN_VERSIONS))
        raise CacheFormatError(f"{where}: format version {version}, this package reads {known}; {remedy}")
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
