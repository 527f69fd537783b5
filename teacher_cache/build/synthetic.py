"""Makes a valid cache without a teacher: for CI, for sizing disks, for tests.

In the teacher's place stands a second-order Markov source over a Zipf-distributed vocabulary. Its logits are
`head @ state`, as a language model's are, so embedding, head and distributions fit together and a student can learn.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional

from delta_common.errors import UserError
from teacher_cache.build.shard_arrays import ShardArrays
from teacher_cache.build.statistics import ShardStatistics
from teacher_cache.build.writer import CacheWriter
from teacher_cache.device import to_device, to_host
from teacher_cache.format.arrays import default_rows_per_chunk
from teacher_cache.format.keys import FROZEN_WEIGHTS_KEY
from teacher_cache.format.manifest import (
    ALIGNMENT,
    FORMAT_NAME,
    FORMAT_VERSION,
    ChannelSampling,
    Manifest,
    RowLayout,
    TeacherIdentity,
    TokenizerIdentity,
)
from teacher_cache.format.sealed import digest
from teacher_cache.settings import HiddenPrecision, HiddenSettings, TargetSettings
from teacher_cache.store.open import open_store
from teacher_cache.targets.keep import join, keep_targets
from teacher_cache.targets.keep_torch import BLOCK, LOG2_E, in_blocks
from teacher_cache.targets.states import channel_sampling

EOS_TOKEN_ID = 0
MEAN_DOCUMENT_TOKENS = 200
POSITIONS_AT_ONCE = 64
"""Positions whose targets are kept at once; with more, the time goes into allocating memory."""


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings:
    """Size and seed of a synthetic cache."""

    rows: int
    seq_len: int
    vocab_size: int
    top_k: int
    hidden_size: int = 64
    seed: int = 0
    rows_per_shard: int = 64
    value_dtype: Literal["float16", "float32"] = "float16"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    hidden: HiddenPrecision = "lossless"
    hidden_stride: int = 1
    hidden_channels: int | None = None
    """Channels kept at each position, drawn anew for each; None for all."""
    mode: Literal["sparse", "exact"] = "sparse"
    samples: int = 0
    exact_hidden: Literal["lossless", "int8"] = "lossless"
    device: str = "cpu"
    """Where to compute logits; devices round differently, so bytes depend on it."""

    def __post_init__(self) -> None:
        for name in ("rows", "seq_len", "top_k", "hidden_size", "rows_per_shard"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.samples < 0:
            raise UserError(f"--samples {self.samples}: must be at least 0")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed {self.seed}: must be from 0 to {2**63 - 1}")
        if self.vocab_size < 2:
            raise UserError(f"--vocab-size {self.vocab_size}: must be at least 2")
        if self.hidden != "none":
            self.states().require_fit(self.hidden_size, self.seq_len)
        if self.top_k > self.vocab_size:
            raise UserError(
                f"--top-k {self.top_k}: larger than --vocab-size {self.vocab_size}; lower one or raise the other"
            )

    def states(self) -> HiddenSettings:
        """What is kept of the averaged hidden states."""
        return HiddenSettings(mean=self.hidden, stride=self.hidden_stride, channels=self.hidden_channels)

    def targets(self) -> TargetSettings:
        """What is kept of each distribution."""
        return TargetSettings(
            mode=self.mode,
            top_k=self.top_k,
            samples=self.samples,
            value_dtype=self.value_dtype,
            exact_hidden=self.exact_hidden,
            seed=self.seed,
        )


def make_synthetic_cache(path: str | Path, **sizes: Any) -> Path | str:
    """Write a synthetic cache at `path`; keyword arguments are the fields of `SyntheticSettings`.

    The same settings give the same bytes. Raises `UserError` on bad sizes or a folder with other content.
    """
    settings = SyntheticSettings(**sizes)
    source = SyntheticTeacher(settings)
    frozen = save({"embedding.weight": source.embedding.cpu(), "lm_head.weight": source.head.cpu()})
    files = {FROZEN_WEIGHTS_KEY: frozen}
    store = open_store(path)
    writer = CacheWriter.open(store, _manifest(settings, files, source.channels()), files)
    for shard in writer.pending_shards():
        with writer.claim(shard) as mine:
            if mine:
                arrays, statistics = source.shard(writer.manifest, writer.manifest.shard_rows(shard))
                writer.write_shard(shard, arrays.by_name, statistics.sums, {"torch": torch.__version__})
    store.clear_locks()
    return store.path


class SyntheticTeacher:
    """Embedding, head and mixing matrices drawn from the seed; a row's tokens from (seed, row)."""

    def __init__(self, settings: SyntheticSettings) -> None:
        self._settings = settings
        self._dtype = getattr(torch, settings.dtype)
        self._device = device = torch.device(settings.device)
        random = torch.Generator().manual_seed(settings.seed)
        vocab, width = settings.vocab_size, settings.hidden_size
        zipf = -torch.log(torch.randperm(vocab, generator=random) + 2.7)
        self.embedding = torch.randn(vocab, width, generator=random).to(device, self._dtype)
        head = torch.randn(vocab, width, generator=random) / max(width - 1, 1) ** 0.5
        head[:, 0] = zipf
        self.head = head.to(device, self._dtype)
        self._mix_last = torch.randn(width, width, generator=random).to(device) / width**0.5
        self._mix_before = torch.randn(width, width, generator=random).to(device) / width**0.5
        self._sharpness = torch.exp(1.4 + 0.4 * torch.randn(vocab, generator=random)).to(device)
        self._mean_map = torch.randn(width, width, generator=random).to(device) / width**0.5

    def states(self, last: Tensor, before: Tensor) -> Tensor:
        """Final states (n, d) after two tokens (n,) each; channel 0 is the constant that carries Zipf's law."""
        mixed = self.embedding[last].float() @ self._mix_last + 0.5 * (
            self.embedding[before].float() @ self._mix_before
        )
        states = mixed * self._sharpness[last, None]
        states[:, 0] = 1.0
        stored: Tensor = states.to(self._dtype)
        return stored

    def mean_states(self, final: Tensor) -> Tensor:
        """What stands for the mean over layers (…, d) float32 of final states (…, d)."""
        return torch.tanh(final.float() @ self._mean_map)

    def channels(self) -> ChannelSampling | None:
        """How channels of the averaged states are drawn: by their sizes behind a few tokens."""
        drawn = self._settings.states().drawn(self._settings.hidden_size)
        if drawn is None:
            return None
        tokens = torch.arange(min(self._settings.vocab_size, 256), device=self._device)
        sizes = self.mean_states(self.states(tokens, tokens.flip(0))).double().square().mean(0).sqrt()
        return channel_sampling(sizes.cpu().numpy(), drawn)

    def logits(self, states: Tensor) -> Tensor:
        """Logits (n, V) of states (n, d), in the teacher's dtype."""
        logits: Tensor = states @ self.head.T
        return logits

    def shard(self, manifest: Manifest, rows: range) -> tuple[ShardArrays, ShardStatistics]:
        """All arrays of a shard: tokens are sampled from the distributions that are cached."""
        arrays, statistics = ShardArrays.empty(manifest, rows), ShardStatistics(manifest.targets)
        everything = slice(0, len(rows))
        offsets = arrays.sampling_offsets(everything).to(self._device)
        generators = [np.random.Generator(np.random.Philox(key=[self._settings.seed, row])) for row in rows]
        last = before = torch.full((len(rows),), EOS_TOKEN_ID, device=self._device)
        finals, tokens, kept = [], [last], []
        waiting: list[Tensor] = []  # logits whose targets are not kept yet
        for position in range(manifest.seq_len):
            finals.append(self.states(last, before))
            waiting.append(self.logits(finals[-1]))
            following = self._next_tokens(waiting[-1], generators)
            tokens.append(following)
            last, before = following, last
            if len(waiting) * len(rows) >= POSITIONS_AT_ONCE or position + 1 == manifest.seq_len:
                uniform = offsets[:, position + 1 - len(waiting) : position + 1].T.flatten()
                labels = torch.cat(tokens[-len(waiting) :])
                kept.append(keep_targets(torch.cat(waiting), labels, manifest.targets, uniform))
                waiting.clear()
        arrays.tokens[:] = torch.stack(tokens, dim=1).cpu().numpy()
        arrays.document_start[:, 0] = True
        arrays.document_start[:, 1:] = arrays.tokens[:, 1 : manifest.seq_len] == EOS_TOKEN_ID
        arrays.loss_mask[:] = True
        everyones = join(kept)
        statistics.add(everyones, torch.cat(tokens[1:]))
        final = torch.stack(finals, dim=1)
        stored: dict[str, Tensor] = {}
        if manifest.targets.mode == "sparse":
            places = torch.arange(len(rows) * manifest.seq_len, device=self._device).view(len(rows), -1).T.flatten()
            stored |= arrays.stored_targets(everything, places, everyones)
        else:
            stored |= arrays.stored_final(everything, final)
        if manifest.hidden.mean != "none":
            stored |= arrays.stored_hidden_mean(everything, self.mean_states(final))
        arrays.put(everything, to_host(stored).arrived())
        return arrays, statistics

    def _next_tokens(self, logits: Tensor, generators: list[np.random.Generator]) -> Tensor:
        """One token per row: EOS now and then, else drawn by a uniform number from the row's own generator."""
        uniform = to_device(torch.tensor([random.random() for random in generators]), self._device)
        ends = torch.tensor([random.random() < 1 / MEAN_DOCUMENT_TOKENS for random in generators])
        return torch.where(to_device(ends, self._device), EOS_TOKEN_ID, drawn_tokens(logits, uniform))


def drawn_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """The token (n,) at which the cumulative probabilities of logits (n, V) reach uniform (n,).

    They are summed over blocks of tokens first, and then within the block that is reached.
    """
    weights = in_blocks(logits).float()
    weights.sub_(weights.amax((1, 2), keepdim=True)).mul_(LOG2_E).exp2_()
    sums = weights.sum(-1).double().cumsum(-1)
    mark = uniform[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, mark)
    inside = weights.take_along_dim(block[..., None], dim=1).squeeze(1).double().cumsum(-1)
    place = torch.searchsorted(inside, mark - functional.pad(sums, (1, 0)).gather(1, block))
    return (block * BLOCK + place.clamp(max=BLOCK - 1)).squeeze(1).clamp(max=logits.shape[1] - 1)


def _manifest(settings: SyntheticSettings, files: dict[str, bytes], channels: ChannelSampling | None) -> Manifest:
    def sha256(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()

    return Manifest(
        format=FORMAT_NAME,
        format_version=FORMAT_VERSION,
        alignment=ALIGNMENT,
        teacher=TeacherIdentity(
            name="synthetic",
            revision=None,
            model_type="synthetic",
            config_sha256=sha256(f"{settings.vocab_size} {settings.hidden_size} {settings.seed}".encode()),
            weights_sha256=sha256(files[FROZEN_WEIGHTS_KEY]),
            dtype=settings.dtype,
            attention="none",
            hidden_size=settings.hidden_size,
            num_layers=2,
            num_heads=4,
            padded_vocab_size=settings.vocab_size,
        ),
        tokenizer=TokenizerIdentity(
            sha256=sha256(f"synthetic {settings.vocab_size}".encode()),
            vocab_size=settings.vocab_size,
            eos_token_id=EOS_TOKEN_ID,
            pad_token_id=EOS_TOKEN_ID,
            has_files=False,
        ),
        corpus={"source": "synthetic", "seed": settings.seed},
        rows=RowLayout(
            mode="packed",
            context="row",
            seq_len=settings.seq_len,
            count=settings.rows,
            rows_per_shard=settings.rows_per_shard,
            rows_per_chunk=default_rows_per_chunk(settings.rows_per_shard),
        ),
        targets=settings.targets().layout(),
        hidden=settings.states().layout(channels),
        compute={},
        files={key: digest(data) for key, data in files.items()},
    )
