"""Reading a cache: `open_cache(path)` gives its rows as NumPy arrays; the path is all that is needed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, SupportsIndex

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from delta_common.errors import UserError, cannot_be_read
from delta_common.files import parse_json
from teacher_cache.format.arrays import ENTRIES, LOG_MASS_FLOOR, POSITION_NUMBERS, ArraySpec, array_specs, row_specs
from teacher_cache.format.codec import open_array, quiet_zarr
from teacher_cache.format.commits import CommitRecord, covers, parse_commit
from teacher_cache.format.errors import REPAIR, CacheCorruptError, CacheFormatError, CacheUnfinishedError
from teacher_cache.format.keys import BODY_KEY, COMMITS_FOLDER, FROZEN_WEIGHTS_KEY, TEACHER_CONFIG_KEY, TOKENIZER_FOLDER
from teacher_cache.format.manifest import Manifest, TargetLayout
from teacher_cache.format.packing import Array, unpacked
from teacher_cache.read.checked_store import CheckedStore
from teacher_cache.read.decode import CachedRows, as_tensor, decode_states
from teacher_cache.read.indices import RowIndices, row_number, row_numbers
from teacher_cache.read.local_copy import local_folder
from teacher_cache.read.shards import can_decode, decode_chunks
from teacher_cache.read.thinning import thin, thinned_layout
from teacher_cache.store.base import Store, read_if_there
from teacher_cache.store.metadata import check_metadata, read_manifest
from teacher_cache.store.open import open_existing
from teacher_cache.targets import estimate
from teacher_cache.targets.randomness import Purpose, row_uniforms
from teacher_cache.targets.states import drawn_of_rows

DECODING_ERRORS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError, MemoryError, OverflowError)
"""What Zarr and its codecs may raise on metadata and chunks that pass every check but are malformed."""


@dataclass(frozen=True)
class TargetsAt:
    """The teacher's distributions of n rows at one temperature.

    ids (n, T, K): the entries; values (n, T, K): their logits; weights (n, T, K): p_i/pi_i, 0 in unused places;
    log_partition (n, T): log Z(T) relative to the largest logit; entropy (n, T): in nats. In exact mode K is the
    whole vocabulary. `(weights * f[ids]).sum(-1)` is an unbiased estimate of the mean of f under the teacher.
    """

    temperature: float
    ids: NDArray[np.integer[Any]]
    values: NDArray[np.float32]
    weights: NDArray[np.float32]
    log_partition: NDArray[np.float32]
    entropy: NDArray[np.float32]

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """Probabilities p_i(T) of the entries, (n, T, K)."""
        scaled = (self.values - self.values[..., :1]) / np.float32(self.temperature)
        chances: NDArray[np.float32] = np.exp(scaled - self.log_partition[..., None])
        return chances


@dataclass(frozen=True)
class HeldShard:
    """A shard's objects in memory, as they are stored."""

    objects: dict[str, bytes] = field(default_factory=dict)
    """By key."""
    reading: Lock = field(default_factory=Lock)
    """Two threads that want an object read it once."""


class Cache:
    """A cache opened for reading; `open_cache` makes one."""

    def __init__(
        self,
        store: Store,
        manifest: Manifest,
        commits: dict[int, CommitRecord],
        layout: TargetLayout | None = None,
        *,
        check_digests: bool = True,
    ) -> None:
        self.store = store
        self.manifest = manifest
        self.commits = commits
        self.layout = layout or manifest.targets
        """Layout of the targets that `rows` returns: the manifest's, or that of a view."""
        self._check_digests = check_digests
        expected = {key: stored for commit in commits.values() for key, stored in commit.objects.items()}
        self._objects = CheckedStore(store.zarr(), expected, where=str(self.path), digests=check_digests)
        self._specs = {spec.name: spec for spec in array_specs(manifest)}
        self._held: dict[int, HeldShard] = {}
        try:
            with quiet_zarr():
                group = zarr.open_group(self._objects, mode="r", zarr_format=3)
                self._arrays = {name: open_array(group, name) for name in self._specs}
        except DECODING_ERRORS as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise cannot_be_read(error.filename, error) from error
            raise CacheCorruptError(f"{self.path}: Zarr cannot open its arrays ({error}); {REPAIR}") from error

    def __len__(self) -> int:
        """Number of rows when finished; before that, only rows of committed shards can be read."""
        return self.manifest.rows.count

    @property
    def path(self) -> Path | str:
        """Folder or URL of the cache."""
        return self.store.path

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest; a student's checkpoint names it."""
        return self.manifest.fingerprint

    @property
    def is_finished(self) -> bool:
        return len(self.commits) == self.manifest.shard_count

    @property
    def shards(self) -> list[range]:
        """Row ranges of the committed shards, in order; whole shards read fastest."""
        return [self.manifest.shard_rows(shard) for shard in sorted(self.commits)]

    @property
    def stored_bytes(self) -> int:
        """Bytes of the committed shards' objects."""
        return sum(stored.bytes for commit in self.commits.values() for stored in commit.objects.values())

    def hold(self, shards: Iterable[int]) -> None:
        """Keep these shards' objects in memory, as they are stored, once they are read; let go of all others.

        Then `rows` that are whole chunks of them, as `whole_chunks` gives, are decoded from memory.
        """
        self._held = {shard: self._held.get(shard) or HeldShard() for shard in shards}

    @property
    def frozen_weights(self) -> Path:
        """Safetensors file of the teacher's embedding and LM head.

        Holds `embedding.weight` (V_padded, d), `lm_head.weight` of the same shape unless it is tied to the embedding,
        and `lm_head.bias` if there is one. For a cache in an object store the file is a local copy, see
        `local_folder`. Raises `CacheCorruptError` when it is not what was written.
        """
        return self._local_folder([FROZEN_WEIGHTS_KEY]) / FROZEN_WEIGHTS_KEY

    @property
    def body_weights(self) -> Path | None:
        """Safetensors file of the teacher's decoder layers and last norm, None where the cache does not carry them.

        Raises `CacheCorruptError` when it is not what was written.
        """
        return self._local_folder([BODY_KEY]) / BODY_KEY if BODY_KEY in self.manifest.files else None

    @property
    def teacher_config(self) -> dict[str, Any] | None:
        """The teacher's configuration as transformers writes it, where the cache carries the body."""
        if TEACHER_CONFIG_KEY not in self.manifest.files:
            return None
        folder = self._local_folder([TEACHER_CONFIG_KEY])
        try:
            config: dict[str, Any] = parse_json((folder / TEACHER_CONFIG_KEY).read_bytes())
        except ValueError as error:
            where = self.store.where(TEACHER_CONFIG_KEY)
            raise CacheCorruptError(f"{where}: not a model's configuration ({error}); {REPAIR}") from error
        return config

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder for `AutoTokenizer.from_pretrained`, None for a synthetic cache; may raise `CacheCorruptError`."""
        if not self.manifest.tokenizer.has_files:
            return None
        keys = [key for key in self.manifest.files if key.startswith(f"{TOKENIZER_FOLDER}/")]
        return self._local_folder(keys) / TOKENIZER_FOLDER

    def _local_folder(self, keys: Sequence[str]) -> Path:
        return local_folder(self.store, self.manifest, keys, check_digests=self._check_digests)

    def __getitem__(self, row: SupportsIndex) -> CachedRows:
        """One row, without the leading axis.

        Raises `IndexError` past the end, `TypeError` for anything but one integer, and `CacheUnfinishedError` for a
        row in a shard that is not built yet.
        """
        return self.rows([row_number(row)]).select(0)

    def rows(self, indices: RowIndices, *, hidden: bool = True, as_stored: bool = False) -> CachedRows:
        """Rows in any order, stacked on axis 0; a `range` within one shard reads fastest.

        `indices` are integers, a range, or a boolean mask over all rows. Without `hidden` the averaged hidden states,
        the most of a cache that has them, are not read. `as_stored` gives a view all entries, for `thinned`. Raises
        `IndexError` or `TypeError` for other indices, and `CacheUnfinishedError` for a row whose shard is not built.
        """
        index = self._checked(indices)
        names = [spec.name for spec in row_specs(self.manifest) if hidden or not spec.name.startswith("hidden/")]
        drawn = drawn_of_rows(self.manifest, index.tolist()) if hidden else {}
        rows = CachedRows(self.manifest, self._arrays_of(names, index) | drawn)
        return rows if as_stored else self.thinned(rows, index)

    def thinned(self, rows: CachedRows, numbers: NDArray[np.int64]) -> CachedRows:
        """Rows as stored, which have these numbers (n,), with the entries of this view; the same where it is none."""
        stored = self.manifest.targets
        if self.layout == stored:
            return rows
        ids, values, log_mass = (as_tensor(rows.arrays[name]) for name in ENTRIES)
        ids, values = ids.long(), values.float()
        drawn = [row_uniforms(stored.seed, int(row), Purpose.THINNING, values[0].numel()) for row in numbers]
        uniform = torch.from_numpy(np.stack(drawn)).view(values.shape).float()
        thinned = zip(ENTRIES, thin(ids, values, log_mass, stored, self.layout, uniform), strict=True)
        entries = {name: tensor.numpy().astype(rows.arrays[name].dtype) for name, tensor in thinned}
        return CachedRows(self.manifest, {**rows.arrays, **entries})

    def whole_chunks(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows (n,) of all chunks that some rows lie in, rising; whole chunks are decoded without more."""
        step = self.manifest.rows.rows_per_chunk
        found = (np.unique(rows // step)[:, None] * step + np.arange(step)).reshape(-1)
        return found[found < len(self)]

    def tokens(self, indices: RowIndices) -> NDArray[np.uint32]:
        """Only the tokens of some rows, (n, T+1); indices and errors as for `rows`."""
        return self._read("tokens", self._checked(indices))

    def targets(self, indices: RowIndices, *, temperature: float) -> TargetsAt:
        """The teacher's distributions of some rows at any temperature in the cached range; indices as for `rows`.

        Raises `UserError` naming the range when the temperature is outside it.
        """
        index = self._checked(indices)
        ids, values, log_mass, layout = self._all_entries(index)
        found = estimate.estimate_at(values, log_mass, layout, temperature)
        return TargetsAt(temperature, ids, values.numpy(), *(tensor.numpy() for tensor in vars(found).values()))

    def view(self, *, top_k: int | None = None, samples: int | None = None) -> "Cache":
        """The same cache with fewer top_k entries or fewer samples per position; its targets are unbiased too.

        Arrays keep their width K, so more places are unused. Raises `UserError` when the cache holds fewer than asked.
        """
        layout = thinned_layout(self.manifest.targets, top_k, samples)
        return Cache(self.store, self.manifest, self.commits, layout, check_digests=self._check_digests)

    def __reduce__(self) -> tuple[Callable[..., "Cache"], tuple[object, ...]]:
        """Pickled as its path: another process opens it again."""
        return _reopened, (self.path, self.layout, self._check_digests, self.is_finished)

    def _all_entries(self, index: NDArray[np.int64]) -> tuple[NDArray[np.integer[Any]], Tensor, Tensor, TargetLayout]:
        """ids, values, log-mass and layout; in exact mode of the whole vocabulary, from final states and LM head."""
        if self.manifest.targets.mode == "sparse":
            rows = self.thinned(CachedRows(self.manifest, self._arrays_of(ENTRIES, index)), index)
            ids, values, log_mass = (rows.arrays[name] for name in ENTRIES)
            return ids, torch.from_numpy(values).float(), torch.from_numpy(log_mass), self.layout
        logits = self._exact_logits(index)
        ordered, order = logits.sort(dim=-1, descending=True)
        nodes = self.layout.node_temperatures
        nothing = torch.full((*ordered.shape[:-1], len(nodes)), LOG_MASS_FLOOR)
        return order.numpy(), ordered, nothing, self.layout.model_copy(update={"top_k": ordered.shape[-1]})

    def _exact_logits(self, index: NDArray[np.int64]) -> Tensor:
        """Logits (n, T, V) float32, from the final hidden states and the LM head."""
        states = decode_states("exact/hidden", self.manifest, lambda name: as_tensor(self._read(name, index)))
        frozen = load_file(self.frozen_weights)
        head = frozen.get("lm_head.weight", frozen["embedding.weight"])[: self.manifest.vocab_size].float()
        bias = frozen.get("lm_head.bias")
        bias = None if bias is None else bias[: len(head)].float()
        return torch.nn.functional.linear(states, head, bias)

    def _arrays_of(self, names: Iterable[str], index: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Rows of these of the arrays of `row_specs`, in this order."""
        packed = ENTRIES if self.manifest.is_packed else ()
        entries = self._unpacked(index) if packed else {}
        return {name: entries[name] if name in packed else self._read(name, index) for name in names}

    def _unpacked(self, index: NDArray[np.int64]) -> dict[str, Array]:
        """Rows of the arrays `ENTRIES`, which whole chunks are read for."""
        whole = self.whole_chunks(index)
        ids, values, numbers = (self._read(name, whole) for name in (*ENTRIES[:2], POSITION_NUMBERS))
        try:
            found = unpacked(self.manifest, ids, values, numbers)
        except ValueError as error:
            raise CacheCorruptError(f"{self.path}: {POSITION_NUMBERS} cannot be decoded ({error}); {REPAIR}") from error
        if np.array_equal(whole, index):
            return found
        places = np.searchsorted(whole, index)
        return {name: array[places] for name, array in found.items()}

    def _read(self, name: str, index: NDArray[np.int64]) -> NDArray[Any]:
        array = self._arrays[name]
        try:
            chunks = self._decodable(index) if can_decode(self._specs[name]) else {}
            if chunks:
                return self._decoded(self._specs[name], chunks, len(index))
            if not len(index) or not np.array_equal(index, np.arange(index[0], index[0] + len(index))):
                return np.asarray(array.oindex[index])
            return np.asarray(array[int(index[0]) : int(index[-1]) + 1])
        except UserError:
            raise
        except DECODING_ERRORS as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise cannot_be_read(error.filename, error) from error
            raise CacheCorruptError(f"{self.path}: {name} cannot be decoded ({error}); {REPAIR}") from error

    def _decodable(self, index: NDArray[np.int64]) -> dict[int, list[int]]:
        """The chunks that these rows are, by shard; none where they are not whole, or Zarr would read less for them."""
        if not np.array_equal(index, self.whole_chunks(index)):
            return {}
        step, found = self.manifest.rows.rows_per_chunk, dict[int, list[int]]()
        for first in index[index % step == 0].tolist():
            shard, within = divmod(first, self.manifest.rows.rows_per_shard)
            found.setdefault(shard, []).append(within // step)
        for shard, chunks in found.items():
            if shard not in self._held and len(chunks) < -(-len(self.manifest.shard_rows(shard)) // step):
                return {}
        return found

    def _decoded(self, spec: ArraySpec, chunks: Mapping[int, list[int]], rows: int) -> NDArray[Any]:
        out, first = np.empty((rows, *spec.row_shape), spec.dtype), 0
        for shard, numbers in chunks.items():
            last = first + len(numbers) * self.manifest.rows.rows_per_chunk
            decode_chunks(self._object(spec, shard), spec, self.manifest.rows, numbers, out[first:last])
            first = last
        return out

    def _object(self, spec: ArraySpec, shard: int) -> bytes:
        key, held = spec.data_key(shard), self._held.get(shard)
        if held is None:
            return self._from_store(key)
        with held.reading:
            if key not in held.objects:
                held.objects[key] = self._from_store(key)
            return held.objects[key]

    def _from_store(self, key: str) -> bytes:
        data = read_if_there(self.store, key)
        self._objects.check(key, data)
        assert data is not None
        return data

    def _checked(self, indices: RowIndices) -> NDArray[np.int64]:
        """Row numbers (n,); raises `CacheUnfinishedError` unless all lie in committed shards."""
        index = row_numbers(indices, len(self))
        for shard in np.unique(index // self.manifest.rows.rows_per_shard):
            if int(shard) not in self.commits:
                raise CacheUnfinishedError(
                    f"{self.path}: shard {shard} is not built yet; run teacher-cache build again"
                )
        return index


def open_cache(path: str | Path, *, allow_unfinished: bool = False, check_digests: bool = True) -> Cache:
    """Open a cache for reading; with `check_digests` each object's digest is checked when it is first read.

    Raises `CacheFormatError` (not a cache, or another format version), `CacheUnfinishedError` (unless allowed) and
    `CacheCorruptError` (metadata or a commit record is not what was written; a committed object is missing or has
    another size).
    """
    store = open_existing(path)
    manifest = read_manifest(store)
    if manifest is None:
        raise CacheFormatError(f"{path}: no teacher cache here; give the folder that teacher-cache build wrote")
    check_metadata(store, manifest)
    commits = _read_commits(store, manifest)
    if not allow_unfinished and len(commits) < manifest.shard_count:
        done = f"{len(commits)} of {manifest.shard_count} shards"
        raise CacheUnfinishedError(f"{path}: unfinished, {done} are built; run teacher-cache build again to continue")
    return Cache(store, manifest, commits, check_digests=check_digests)


def _reopened(path: str | Path, layout: TargetLayout, check_digests: bool, is_finished: bool) -> Cache:
    cache = open_cache(path, allow_unfinished=not is_finished, check_digests=check_digests)
    return Cache(cache.store, cache.manifest, cache.commits, layout, check_digests=check_digests)


def _read_commits(store: Store, manifest: Manifest) -> dict[int, CommitRecord]:
    """Commit records by shard; every object they list must exist with the listed size."""
    commits = {}
    sizes = store.sizes()
    keys = sorted(key for key in sizes if key.startswith(f"{COMMITS_FOLDER}/"))
    for key, data in zip(keys, store.read_all(keys), strict=True):
        record = parse_commit(data, key, manifest, store.where(key))
        if covers(record, manifest):
            _require_objects(store, record, sizes)
            commits[record.shard] = record
    return commits


def _require_objects(store: Store, record: CommitRecord, sizes: Mapping[str, int]) -> None:
    """Zarr reads a missing object as zeros, so check existence and size before anything is read."""
    for key, stored in record.objects.items():
        if key not in sizes:
            raise CacheCorruptError(f"{store.where(key)}: missing; {REPAIR}")
        if sizes[key] != stored.bytes:
            raise CacheCorruptError(f"{store.where(key)}: {sizes[key]} bytes instead of {stored.bytes}; {REPAIR}")
