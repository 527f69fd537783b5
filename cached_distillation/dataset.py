"""A cache as a map-style data set: it pickles, forks and spawns, so a DataLoader's workers can read it."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex, TypeVar

import numpy as np
from torch.utils.data import Dataset

from cached_distillation.batch import CachedRow
from delta_common.errors import UserError
from delta_common.tokenizer import is_digest_of
from student.data.order import shuffle_sizes
from student.model.frozen import FrozenHead, read_frozen_weights
from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.read.decode import CachedRows, as_tensor
from teacher_cache.read.indices import row_number, row_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


class CacheDataset(Dataset[CachedRow]):
    """The rows of a cache. Read them in the order of an `EpochSampler`: others decode a chunk for every row.

    Args:
        cache: its folder or URL, or an open one, such as a view with fewer targets (`open_cache(…).view(top_k=8)`).
        hidden_states: whether rows carry the teacher's averaged hidden states, which a loss with `beta` above 0 needs.
        tokenizer: the student's; if given, it must be the cache's.

    Raises `UserError` for an unfinished cache, for another tokenizer, and where hidden states are asked for that the
    cache does not have; and what `open_cache` raises.

    """

    def __init__(
        self,
        cache: str | Path | Cache,
        *,
        hidden_states: bool = False,
        tokenizer: "PreTrainedTokenizerBase | None" = None,
    ) -> None:
        self._cache = cache if isinstance(cache, Cache) else open_cache(cache)
        self._process = os.getpid()
        self._chunks: OrderedDict[int, CachedRows] = OrderedDict()
        self._shards: OrderedDict[int, None] = OrderedDict()
        self.hidden_states = hidden_states
        if not self._cache.is_finished:
            raise UserError(f"{self._cache.path}: unfinished; run teacher-cache build again to continue")
        self._sizes = shuffle_sizes(self._cache)
        if hidden_states and self._cache.manifest.hidden.mean == "none":
            raise UserError(f"{self._cache.path}: no averaged hidden states; leave hidden_states out, and beta at 0")
        if tokenizer is not None:
            self.require_tokenizer(tokenizer)

    @property
    def cache(self) -> Cache:
        """The cache, open in this process: a worker that was forked opens it again."""
        if self._process != os.getpid():
            self._cache, self._process = pickle.loads(pickle.dumps(self._cache)), os.getpid()  # noqa: S301
            self._chunks.clear()
            self._shards.clear()
        return self._cache

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, index: SupportsIndex) -> CachedRow:
        cache = self.cache
        number = int(row_numbers(np.array([row_number(index)]), len(cache))[0])
        chunk, place = divmod(number, cache.manifest.rows.rows_per_chunk)
        row = cache.thinned(self._chunk(chunk).select(slice(place, place + 1)), np.array([number]))
        tensors = {name: as_tensor(array[0]) for name, array in row.arrays.items()}
        return CachedRow(tensors, cache.manifest, cache.layout)

    def require_tokenizer(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        """Raise `UserError` unless the tokenizer is the cache's."""
        if not is_digest_of(tokenizer, self._cache.manifest.tokenizer_sha256):
            raise UserError(
                f"{self._cache.path}: another tokenizer than the student's; build the cache with a teacher that has "
                "the student's tokenizer, or take a student of the teacher's family"
            )

    def teacher_head(self) -> FrozenHead | None:
        """The teacher's LM head over real tokens, float32, where its targets are logits to be computed (exact mode)."""
        manifest = self._cache.manifest
        if manifest.targets.mode != "exact":
            return None
        return read_frozen_weights(
            self._cache.frozen_weights,
            padded_vocab_size=manifest.padded_vocab_size,
            vocab_size=manifest.vocab_size,
            hidden_size=manifest.hidden_size,
            logit_transform=manifest.teacher.logit_transform,
        ).head

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_chunks": OrderedDict(), "_shards": OrderedDict()}

    def _chunk(self, chunk: int) -> CachedRows:
        """A chunk's rows as stored. The latest are kept: a window's, and a shard's more for a batch across two."""
        if chunk not in self._chunks:
            layout = self.cache.manifest.rows
            first, chunks_per_shard = chunk * layout.rows_per_chunk, layout.rows_per_shard // layout.rows_per_chunk
            _keep(self._shards, first // layout.rows_per_shard, None, self._sizes.pool + 1)
            self.cache.hold(self._shards)
            whole = self.cache.whole_chunks(np.array([first]))
            rows = self.cache.rows(whole, hidden=self.hidden_states, as_stored=True)
            _keep(self._chunks, chunk, rows, (self._sizes.window + 1) * chunks_per_shard)
        self._chunks.move_to_end(chunk)
        return self._chunks[chunk]


def _keep(held: OrderedDict[int, T], key: int, value: T, most: int) -> None:
    """Add an entry as the newest, or make it that, and let go of the oldest beyond so many."""
    held[key] = value
    held.move_to_end(key)
    while len(held) > most:
        held.popitem(last=False)
