"""A cache as a map-style data set: it pickles, forks and spawns, so a DataLoader's workers can read it."""

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
from torch.utils.data import Dataset

from cached_distillation.batch import CachedRow
from delta_common.errors import UserError
from delta_common.tokenizer import is_digest_of
from student.data.order import shards_per_window
from student.model.frozen import FrozenHead, read_frozen_weights
from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.read.decode import CachedRows, as_tensor
from teacher_cache.read.indices import row_number, row_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CacheDataset(Dataset[CachedRow]):
    """The rows of a cache. Read them in the order of an `EpochSampler`: others decode a shard for every row.

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
        self._held: OrderedDict[int, CachedRows] = OrderedDict()
        self.hidden_states = hidden_states
        if not self._cache.is_finished:
            raise UserError(f"{self._cache.path}: unfinished; run teacher-cache build again to continue")
        if hidden_states and self._cache.manifest.hidden.mean == "none":
            raise UserError(f"{self._cache.path}: no averaged hidden states; leave hidden_states out, and beta at 0")
        if tokenizer is not None:
            self.require_tokenizer(tokenizer)

    @property
    def cache(self) -> Cache:
        """The cache, open in this process: a worker that was forked opens it again."""
        if self._process != os.getpid():
            self._cache, self._process = pickle.loads(pickle.dumps(self._cache)), os.getpid()  # noqa: S301
            self._held.clear()
        return self._cache

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, index: SupportsIndex) -> CachedRow:
        cache = self.cache
        number = int(row_numbers(np.array([row_number(index)]), len(cache))[0])
        shard, place = divmod(number, cache.manifest.rows.rows_per_shard)
        tensors = {name: as_tensor(array[place]) for name, array in self._shard(shard).arrays.items()}
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
        return {**vars(self), "_held": OrderedDict()}

    def _shard(self, shard: int) -> CachedRows:
        """A shard's rows, decoded; those of a window are kept, and one more for a batch across two windows."""
        if shard not in self._held:
            while len(self._held) > shards_per_window(self._cache.manifest):
                self._held.popitem(last=False)
            self._held[shard] = self.cache.rows(self.cache.manifest.shard_rows(shard), hidden=self.hidden_states)
        self._held.move_to_end(shard)
        return self._held[shard]
