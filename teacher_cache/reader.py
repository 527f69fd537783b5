"""Reading a cache: `open_cache(path)` and rows as typed arrays. Needs the path and nothing else."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from teacher_cache import estimate
from teacher_cache.codec import open_array, quiet_zarr, widen_bfloat16
from teacher_cache.format import (
    FROZEN_WEIGHTS_KEY,
    LOG_MASS_FLOOR,
    TOKENIZER_FOLDER,
    CacheCorruptError,
    CacheError,
    CacheFormatError,
    CacheUnfinishedError,
    CommitRecord,
    Manifest,
    TargetLayout,
    array_specs,
    commit_key,
    parse_commit,
    parse_manifest,
)
from teacher_cache.quantize import dequantize, unpack_int4
from teacher_cache.randomness import Purpose, row_uniforms
from teacher_cache.store import LocalStore
from teacher_cache.thinning import thin, thinned_layout

GROUP_KEY = "zarr.json"


@dataclass(frozen=True)
class CachedRows:
    """n rows of a cache as NumPy arrays; a single row has the same fields without the leading axis.

    tokens (n, T+1) uint32; document_start, loss_mask (n, T) bool. In sparse mode ids (n, T, K) uint32 and values
    (n, T, K) float32 logits, the top_k largest first, then the sampled, unused places -inf; log_mass (n, T, J)
    float32, outside the top_k, at the nodes, relative to the largest logit. In exact mode final_hidden (n, T, d)
    float32. hidden_mean (n, ceil(T/stride), d) float32, every stride-th position. What is not cached is None.
    Position t belongs to the distribution of tokens[t+1]; positions where loss_mask is false hold zeros.
    """

    tokens: NDArray[np.uint32]
    document_start: NDArray[np.bool_]
    loss_mask: NDArray[np.bool_]
    ids: NDArray[np.uint32] | None
    values: NDArray[np.float32] | None
    log_mass: NDArray[np.float32] | None
    final_hidden: NDArray[np.float32] | None
    hidden_mean: NDArray[np.float32] | None

    def select(self, index: Any) -> "CachedRows":
        """Every field indexed on axis 0: an integer gives one row, a slice or an array of integers several."""
        fields: dict[str, Any] = {name: None if a is None else a[index] for name, a in vars(self).items()}
        return CachedRows(**fields)


@dataclass(frozen=True)
class TargetsAt:
    """The teacher at one temperature, for n rows; a sum over the vocabulary is `(weights * f[ids]).sum(-1)`.

    ids (n, T, K); values (n, T, K) their logits; weights (n, T, K) p_i/pi_i, 0 in unused places, whose sums are
    unbiased; log_partition (n, T) log Z(T) relative to the largest logit; entropy (n, T) in nats. In exact mode K is
    the whole vocabulary.
    """

    temperature: float
    ids: NDArray[np.integer[Any]]
    values: NDArray[np.float32]
    weights: NDArray[np.float32]
    log_partition: NDArray[np.float32]
    entropy: NDArray[np.float32]

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """p_i(T) of the entries, (n, T, K)."""
        scaled = (self.values - self.values[..., :1]) / np.float32(self.temperature)
        chances: NDArray[np.float32] = np.exp(scaled - self.log_partition[..., None])
        return chances


class Cache:
    """A cache opened for reading; `open_cache` makes one."""

    def __init__(
        self, path: Path, manifest: Manifest, commits: dict[int, CommitRecord], layout: TargetLayout | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.commits = commits
        self.layout = layout or manifest.targets
        """What `rows` give of each distribution: the manifest's, or a view's."""
        with quiet_zarr():
            group = zarr.open_group(path, mode="r")
            self._arrays = {spec.name: open_array(group, spec.name) for spec in array_specs(manifest)}

    def __len__(self) -> int:
        """Rows planned; all of them can be read once the build has finished."""
        return self.manifest.rows.count

    @property
    def fingerprint(self) -> str:
        """sha256 of the manifest, which a student's checkpoint is tied to."""
        return self.manifest.fingerprint

    @property
    def is_finished(self) -> bool:
        return len(self.commits) == self.manifest.shard_count

    @property
    def shards(self) -> list[range]:
        """Row ranges of the committed shards, in order: reading whole ones is fastest."""
        return [self.manifest.shard_rows(shard) for shard in sorted(self.commits)]

    @property
    def frozen_weights(self) -> Path:
        """Safetensors file of the teacher's embedding and LM head.

        `embedding.weight` (V_padded, d), `lm_head.weight` of the same shape where untied, `lm_head.bias` if any.
        """
        return self.path / FROZEN_WEIGHTS_KEY

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder for `AutoTokenizer.from_pretrained`; None for a synthetic cache."""
        return self.path / TOKENIZER_FOLDER if self.manifest.tokenizer.has_files else None

    def __getitem__(self, row: int) -> CachedRows:
        """One row; raises `IndexError` past the end and `CacheUnfinishedError` in a shard not built yet."""
        return self.rows([row]).select(0)

    def rows(self, indices: Sequence[int] | range | NDArray[np.integer[Any]]) -> CachedRows:
        """Rows in any order, stacked on axis 0; a `range` within one shard reads fastest."""
        index = self._checked(indices)
        sparse, stored = self.manifest.targets.mode == "sparse", self.manifest
        ids, values, log_mass = self._entries(index) if sparse else (None, None, None)
        return CachedRows(
            tokens=self._read("tokens", index),
            document_start=self._read("document_start", index),
            loss_mask=self._read("loss_mask", index),
            ids=ids,
            values=values,
            log_mass=log_mass,
            final_hidden=None if sparse else self._states("exact/hidden", index, stored.targets.exact_hidden),
            hidden_mean=self._states("hidden/mean", index, stored.hidden.mean),
        )

    def targets(self, indices: Sequence[int] | range | NDArray[np.integer[Any]], *, temperature: float) -> TargetsAt:
        """The teacher's distributions of some rows at any temperature in the cached range.

        Raises `UserError` naming the range when the temperature is outside it.
        """
        index = self._checked(indices)
        ids, values, log_mass, layout = self._all_entries(index)
        found = estimate.estimate_at(values, log_mass, layout, temperature)
        return TargetsAt(temperature, ids, values.numpy(), *(tensor.numpy() for tensor in vars(found).values()))

    def view(self, *, top_k: int | None = None, samples: int | None = None) -> "Cache":
        """The same cache with fewer certain entries or fewer samples a position, still unbiased.

        Rows keep their width, unused places grow. Raises `UserError` when the cache does not hold as much.
        """
        return Cache(self.path, self.manifest, self.commits, thinned_layout(self.manifest.targets, top_k, samples))

    def _entries(self, index: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.float32], NDArray[np.float32]]:
        values = torch.from_numpy(self._read("logits/values", index)).float()
        ids, log_mass = self._read("logits/ids", index), self._read("logits/log_mass", index)
        stored = self.manifest.targets
        if self.layout == stored:
            return ids, values.numpy(), log_mass
        numbers = [row_uniforms(stored.seed, int(row), Purpose.THINNING, values[0].numel()) for row in index]
        uniform = torch.from_numpy(np.stack(numbers)).view(values.shape).float()
        as_tensors = torch.from_numpy(ids.astype(np.int64)), values, torch.from_numpy(log_mass)
        thin_ids, thin_values, thin_mass = thin(*as_tensors, stored, self.layout, uniform)
        return thin_ids.numpy().astype(np.uint32), thin_values.numpy(), thin_mass.numpy()

    def _all_entries(self, index: NDArray[np.int64]) -> tuple[NDArray[np.integer[Any]], Tensor, Tensor, TargetLayout]:
        """Entries as tensors; in exact mode those of the whole vocabulary, from the final state and the LM head."""
        if self.manifest.targets.mode == "sparse":
            ids, values, log_mass = self._entries(index)
            return ids, torch.from_numpy(values), torch.from_numpy(log_mass), self.layout
        states = self._states("exact/hidden", index, self.manifest.targets.exact_hidden)
        assert states is not None
        frozen = load_file(self.frozen_weights)
        head = frozen.get("lm_head.weight", frozen["embedding.weight"])[: self.manifest.vocab_size].float()
        bias = frozen.get("lm_head.bias")
        bias = None if bias is None else bias[: len(head)].float()
        logits = torch.nn.functional.linear(torch.from_numpy(states), head, bias)
        ordered, order = logits.sort(dim=-1, descending=True)
        nodes = self.layout.node_temperatures
        nothing = torch.full((*ordered.shape[:-1], len(nodes)), LOG_MASS_FLOOR)
        return order.numpy(), ordered, nothing, self.layout.model_copy(update={"top_k": ordered.shape[-1]})

    def _states(self, name: str, index: NDArray[np.int64], precision: str) -> NDArray[np.float32] | None:
        if precision == "none":
            return None
        stored = self._read(name, index)
        if precision == "lossless":
            return widen_bfloat16(stored) if stored.dtype == np.uint16 else stored.astype(np.float32)
        codes = torch.from_numpy(stored)
        if precision == "int4":
            codes = unpack_int4(codes, self.manifest.hidden_size)
        states: NDArray[np.float32] = dequantize(codes, torch.from_numpy(self._read(f"{name}_scales", index))).numpy()
        return states

    def _read(self, name: str, index: NDArray[np.int64]) -> NDArray[Any]:
        array = self._arrays[name]
        try:
            if len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
                return np.asarray(array[int(index[0]) : int(index[-1]) + 1])
            return np.asarray(array.oindex[index])
        except (ValueError, RuntimeError, OSError) as error:
            raise CacheCorruptError(f"{self.path}: {name} cannot be decoded ({error}); rebuild its shard") from error

    def _checked(self, indices: Sequence[int] | range | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Row numbers, negative ones counted from the end, all in committed shards."""
        index = np.asarray(indices, dtype=np.int64)
        index = np.where(index < 0, index + len(self), index)
        self._require_committed(index)
        return index

    def _require_committed(self, index: NDArray[np.int64]) -> None:
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"row out of range: the cache has {len(self)} rows")
        for shard in np.unique(index // self.manifest.rows.rows_per_shard):
            if int(shard) not in self.commits:
                raise CacheUnfinishedError(
                    f"{self.path}: shard {shard} is not built yet; run teacher-cache build again"
                )


def open_cache(path: str | Path, *, allow_unfinished: bool = False) -> Cache:
    """Open a cache for reading.

    Raises `CacheFormatError` (no cache, or a newer format), `CacheUnfinishedError` (unless allowed) and
    `CacheCorruptError` (a committed object is missing or has another size).
    """
    root = Path(path)
    if not root.exists():
        raise CacheFormatError(f"{root}: no such folder; give the path of a cache that teacher-cache build wrote")
    store = LocalStore(root)
    manifest = read_manifest(store)
    if manifest is None:
        raise CacheFormatError(f"{root}: no teacher cache here; give the folder that teacher-cache build wrote")
    commits = _read_commits(store, manifest)
    if not allow_unfinished and len(commits) < manifest.shard_count:
        done = f"{len(commits)} of {manifest.shard_count} shards"
        raise CacheUnfinishedError(f"{root}: unfinished, {done} are built; run teacher-cache build again to continue")
    return Cache(root, manifest, commits)


def read_manifest(store: LocalStore) -> Manifest | None:
    """The manifest of the cache in a store, or None where there is no Zarr group."""
    if not store.exists(GROUP_KEY):
        return None
    where = str(store.root)
    try:
        document = json.loads(store.read(GROUP_KEY))
    except ValueError as error:
        raise CacheError(f"{where}: its zarr.json is not JSON; choose another --out") from error
    attributes = document.get("attributes") if isinstance(document, dict) else None
    return parse_manifest(attributes if isinstance(attributes, dict) else {}, where)


def _read_commits(store: LocalStore, manifest: Manifest) -> dict[int, CommitRecord]:
    commits = {}
    for shard in range(manifest.shard_count):
        key = commit_key(shard)
        if store.exists(key):
            commits[shard] = parse_commit(store.read(key), where=str(store.root / key))
            _require_objects(store, commits[shard])
    return commits


def _require_objects(store: LocalStore, commit: CommitRecord) -> None:
    """Zarr reads a missing object as zeros, so existence and size are checked before anything is read."""
    for key, stored in commit.objects.items():
        if not store.exists(key):
            raise CacheCorruptError(f"{store.root / key}: missing; remove {commit_key(commit.shard)} and build again")
        if store.size(key) != stored.bytes:
            remedy = f"remove {commit_key(commit.shard)} and build again"
            raise CacheCorruptError(f"{store.root / key}: {store.size(key)} bytes instead of {stored.bytes}; {remedy}")
