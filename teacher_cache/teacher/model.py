"""The teacher: tokens → final hidden states and their mean over layers; hidden states → logits, chunk by chunk."""

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from delta_common.errors import UserError
from teacher_cache.device import to_device
from teacher_cache.format.keys import FROZEN_WEIGHTS_KEY, TOKENIZER_FOLDER
from teacher_cache.format.manifest import TeacherIdentity, TokenizerIdentity
from teacher_cache.format.sealed import canonical_json
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.cuda_graphs import Captured
from teacher_cache.teacher.layer_sum import LayerSum

HEAD_CHUNK_ELEMENTS = 16 * 2**20
"""Logits in memory at once, about: the chunk of positions is this over the vocabulary's size. In bfloat16 they then
are still in a processor's cache when targets are taken from them."""

GPU_HEAD_CHUNK_ELEMENTS = 512 * 2**20
"""The same on a GPU, which needs some thousand positions to be busy: 1 GiB in bfloat16."""


@dataclass(frozen=True)
class TeacherStates:
    """One forward pass: `final` (B, T, d), after the final norm, in the teacher's dtype; `mean` (B, T, d) float32.

    `mean` averages the state after each layer, the last one after the final norm, as transformers reports them;
    the embedding output is not a layer. None when it was not asked for.
    """

    final: Tensor
    mean: Tensor | None = None


class Teacher:
    """A causal language model that gives hidden states and, in chunks, logits over the real vocabulary."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: TeacherSettings) -> None:
        self.tokenizer = tokenizer
        self._model = model
        self._settings = settings
        self._body: nn.Module = model.base_model
        self._head = _output_head(model, settings.model)
        self._layers = _decoder_layers(self._body, model.config.num_hidden_layers, settings.model)
        self.vocab_size = _real_vocab_size(tokenizer, self._head.weight.shape[0], settings.model)
        self._records = self.device.type == "cuda" and not settings.compile
        self.forget_shapes()
        self._require_plain_head()
        if settings.compile:
            for layer in self._layers:
                layer.forward = torch.compile(layer.forward)

    def forget_shapes(self) -> None:
        """Let go what a GPU keeps for the shapes of batches it has seen."""
        self._captured = {mean: Captured(partial(self._run, mean=mean)) for mean in (False, True)}

    @property
    def device(self) -> torch.device:
        return self._head.weight.device

    @property
    def context_length(self) -> int | None:
        """Longest sequence the teacher was made for, if its configuration says."""
        return getattr(self._model.config, "max_position_embeddings", None)

    @property
    def bytes_per_token(self) -> int:
        """Memory a forward pass takes for each token, about: some states, and what a feed-forward layer is wide."""
        config = self._model.config
        wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return int((8 * config.hidden_size + 4 * wide) * self._head.weight.element_size() + 8 * config.hidden_size)

    @property
    def head_weight(self) -> Tensor:
        """The LM head over the real vocabulary, (V_real, d), in the teacher's dtype."""
        return self._head.weight[: self.vocab_size]

    @torch.inference_mode()
    def states(
        self, tokens: Tensor, *, mean: bool, document_start: Tensor | None = None, recorded: bool = True
    ) -> TeacherStates:
        """Run the body over tokens (B, T) int64; rows are padded on the right, so no attention mask is needed.

        With document_start (B, T) bool no position sees past the start of its document: positions count from there,
        which transformers takes for the border of packed sequences. A GPU records the pass over a shape that comes
        again, unless told not to, and keeps its memory.
        """
        tokens = to_device(tokens, self.device)
        if recorded and self._records and document_start is None:
            return TeacherStates(*self._captured[mean](tokens))
        where = {} if document_start is None else {"position_ids": to_device(places(document_start), self.device)}
        return TeacherStates(*self._run(tokens, mean=mean, **where))

    def _run(self, tokens: Tensor, *, mean: bool, **where: Tensor) -> tuple[Tensor, ...]:
        """The fields of `TeacherStates` that are asked for."""
        total = LayerSum()

        def add(_module: nn.Module, _inputs: Any, output: Any) -> None:
            total.add(output[0] if isinstance(output, tuple) else output)

        hooks = [layer.register_forward_hook(add) for layer in self._layers[:-1]] if mean else []
        try:
            final: Tensor = self._body(input_ids=tokens, use_cache=False, **where).last_hidden_state
        finally:
            for hook in hooks:
                hook.remove()
        if not mean:
            return (final,)
        total.add(final)
        return final, total.sum().div_(len(self._layers))

    @torch.inference_mode()
    def logits_in_chunks(self, final: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Logits (chunk, V_real) in the teacher's dtype for final states (n, d), a chunk of positions at a time.

        The chunk depends on the vocabulary and the kind of device alone, so memory does not grow with batch or
        sequence, and padding rows of the vocabulary are cut off.
        """
        elements = GPU_HEAD_CHUNK_ELEMENTS if self.device.type == "cuda" else HEAD_CHUNK_ELEMENTS
        size = max(1, elements // self._head.weight.shape[0])
        for start in range(0, len(final), size):
            where = slice(start, min(start + size, len(final)))
            yield where, self._head(final[where])[:, : self.vocab_size]

    def identity(self) -> TeacherIdentity:
        """What makes this teacher this teacher; the weights' digest covers every tensor as it runs."""
        config = self._model.config
        fields = {k: v for k, v in config.to_dict().items() if k not in _INCIDENTAL_CONFIG_KEYS}
        return TeacherIdentity(
            name=self._settings.model,
            revision=getattr(config, "_commit_hash", None) or self._settings.revision,
            model_type=config.model_type,
            config_sha256=hashlib.sha256(canonical_json(fields)).hexdigest(),
            weights_sha256=_weights_sha256(self._model),
            dtype=self._settings.dtype,
            attention=self._settings.attention,
            hidden_size=config.hidden_size,
            num_layers=len(self._layers),
            num_heads=config.num_attention_heads,
            padded_vocab_size=self._head.weight.shape[0],
        )

    def tokenizer_identity(self) -> TokenizerIdentity:
        """Digest of the whole token map and the special ids."""
        tokenizer = self.tokenizer
        eos = tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise UserError(f"teacher.model {self._settings.model}: its tokenizer has no end-of-sequence token")
        content = {"tokens": tokenizer.get_vocab(), "special": tokenizer.all_special_ids}
        return TokenizerIdentity(
            sha256=hashlib.sha256(canonical_json(content)).hexdigest(),
            vocab_size=self.vocab_size,
            eos_token_id=eos,
            pad_token_id=tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else eos,
            has_files=True,
        )

    def files(self) -> dict[str, bytes]:
        """What the cache carries of the teacher, by key: embedding, LM head and tokenizer.

        A student then needs the cache's path alone: no hub, no body, and no doubt about which weights.
        """
        frozen = {"embedding.weight": self._model.get_input_embeddings().weight}
        if self._head.weight.data_ptr() != frozen["embedding.weight"].data_ptr():
            frozen["lm_head.weight"] = self._head.weight
        if self._head.bias is not None:
            frozen["lm_head.bias"] = self._head.bias
        tensors = {name: weight.detach().contiguous().cpu() for name, weight in frozen.items()}
        return {FROZEN_WEIGHTS_KEY: save(tensors), **_tokenizer_files(self.tokenizer)}

    @torch.inference_mode()
    def require_documents_apart(self) -> None:
        """Refuse models that do not keep packed documents apart, by comparing on a probe."""
        probe = torch.arange(16, device=self.device)[None] % self.vocab_size
        starts = torch.zeros(1, 16, dtype=torch.bool)
        starts[0, [0, 9]] = True
        packed = self.states(probe, mean=False, document_start=starts).final[0, 9:].float()
        apart = self.states(probe[:, 9:], mean=False).final[0].float()
        if not torch.allclose(packed, apart, rtol=1e-2, atol=1e-2 * float(apart.abs().max())):
            raise UserError(
                f"rows.context document: teacher {self._settings.model} with attention {self._settings.attention} does "
                "not keep documents in a row apart; set rows.context to row, or teacher.attention to sdpa"
            )

    @torch.inference_mode()
    def _require_plain_head(self) -> None:
        """Refuse models that change logits after the LM head (soft-capping, scaling), by comparing on a probe."""
        probe = torch.arange(8, device=self.device)[None] % self.vocab_size
        whole = self._model(input_ids=probe, use_cache=False).logits[0].float()
        ours = self._head(self.states(probe, mean=False).final[0]).float()
        if not torch.allclose(whole, ours, rtol=1e-2, atol=1e-2 * float(whole.abs().max())):
            raise UserError(
                f"teacher.model {self._settings.model}: transforms its logits after the LM head; not supported"
            )


def places(document_start: Tensor) -> Tensor:
    """Places in the document (B, T) int64 from starts (B, T) bool; what comes before a row's first start counts too."""
    index = torch.arange(document_start.shape[1]).expand(document_start.shape)
    return index - torch.where(document_start, index, 0).cummax(dim=1).values


_INCIDENTAL_CONFIG_KEYS = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "quantization_config",
}


def _output_head(model: PreTrainedModel, name: str) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(f"teacher.model {name}: its output layer is a {type(head).__name__}, not a linear LM head")
    return head


def _decoder_layers(body: nn.Module, count: int, name: str) -> nn.ModuleList:
    for child in body.children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise UserError(f"teacher.model {name}: no list of {count} decoder layers found; only decoder models are supported")


def _real_vocab_size(tokenizer: PreTrainedTokenizerBase, head_rows: int, name: str) -> int:
    """Real tokens are a prefix of the head's rows; what lies behind is padding nobody trained."""
    size: int = max(tokenizer.get_vocab().values()) + 1
    if size > head_rows:
        raise UserError(
            f"teacher.model {name}: its tokenizer has {size} tokens but its LM head only {head_rows} rows; "
            "use the tokenizer the model was trained with"
        )
    return size


def _weights_sha256(model: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        sha.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        sha.update(weight.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return {f"{TOKENIZER_FOLDER}/{path.relative_to(folder)}": path.read_bytes() for path in files}
