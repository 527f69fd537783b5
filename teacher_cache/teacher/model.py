"""The teacher: tokens → final hidden states and their mean over layers; final hidden states → logits, in chunks."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import transformers
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from delta_common.errors import UserError
from delta_common.files import parse_json
from delta_common.machine.matrix_work import MatrixWork, Operations, has_experts, product_parameters
from delta_common.tokenizer import tokenizer_digest
from delta_common.weights import FileFacts, remembered_sha256, weights_sha256
from teacher_cache.device import to_device
from teacher_cache.format.keys import BODY_KEY, FROZEN_WEIGHTS_KEY, TEACHER_CONFIG_KEY
from teacher_cache.format.manifest import TargetLayout, TeacherIdentity, TokenizerIdentity
from teacher_cache.format.sealed import canonical_json
from teacher_cache.settings import TeacherSettings
from teacher_cache.targets.keep import KeptTargets, join, keep_targets
from teacher_cache.teacher.cuda_graphs import Captured, rows_not_packed
from teacher_cache.teacher.layer_sum import LayerSum
from teacher_cache.teacher.parallel.fit import activation_bytes
from teacher_cache.teacher.parallel.group import ALONE, TeacherGroup
from teacher_cache.teacher.parallel.parts import summed_in_parts
from teacher_cache.teacher.parallel.whole import whole_one_by_one
from teacher_cache.teacher.parts import (
    decoder,
    decoder_layers,
    head_count,
    output_head,
    quantization,
    real_vocab_size,
    state_of,
    text_config,
)
from teacher_cache.teacher.probes import Subject, embedding_scale, require_teacher
from teacher_cache.teacher.tokenizer import tokenizer_files

HEAD_CHUNK_ELEMENTS = 16 * 2**20
"""Logits computed at once on a CPU; a chunk has this many divided by the vocabulary's size positions. In bfloat16 they
take 32 MiB, and are still in the processor's cache when targets are taken from them."""

GPU_HEAD_CHUNK_ELEMENTS = 512 * 2**20
"""The same on a GPU, which needs some thousand positions to be kept busy: 1 GiB in bfloat16."""


@dataclass(frozen=True)
class TeacherStates:
    """Hidden states of a forward pass: `final` (B, T, d) in the teacher's dtype, `mean` (B, T, d) float32.

    `final` is the state after the final norm. `mean` is the mean over the layers of the state after each, where the
    last layer counts after the final norm, as transformers reports them, and the embedding does not count; None when
    it was not asked for.
    """

    final: Tensor
    mean: Tensor | None = None


class Teacher:
    """A causal language model that gives hidden states and, in chunks, logits over the real vocabulary."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: TeacherSettings,
        group: TeacherGroup = ALONE,
        checkpoint: Sequence[FileFacts] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self._group = group
        self._checkpoint = checkpoint
        self._led: Tensor | None = None
        """Final states (B, T, d) of the latest batch, in a process that does not lead."""
        self._model = model
        self._settings = settings
        self._config = text_config(model)
        self._body = decoder(model, settings.model)
        self._head = output_head(model, settings.model)
        self._layers = decoder_layers(self._body, self._config.num_hidden_layers, settings.model)
        self.vocab_size = real_vocab_size(tokenizer, self._head.weight.shape[0], settings.model)
        self._quantization = quantization(model)
        self._digest = self._packed_digest()
        self._records = self.device.type == "cuda" and not self._is_spread
        self._compiled = False
        self._forget_recordings()
        if not group.is_alone:
            group.before_leaving.append(self._forget_recordings)
        subject = Subject(model, self._body, self._head, self._layers, settings.model, settings.dtype, self.vocab_size)
        self._transform = require_teacher(subject)
        self._embedding_scale = embedding_scale(subject)
        if settings.compile is True:
            self.compile_layers()

    def compile_layers(self) -> None:
        """Run the layers compiled from now on; `teacher.compile: auto` is decided when the teacher is loaded."""
        if self._compiled:
            return
        self._compiled, self._records = True, False
        self.forget_shapes()
        for layer in self._layers:
            layer.forward = torch.compile(layer.forward)

    def forget_shapes(self) -> None:
        """Free the GPU memory kept for the batch shapes seen so far."""
        self._group.tell("forget_shapes")
        self._forget_recordings()

    def _forget_recordings(self) -> None:
        self._captured = {mean: Captured(partial(self._run, mean=mean)) for mean in (False, True)}

    @property
    def model(self) -> PreTrainedModel:
        """The model of transformers that it is."""
        return self._model

    @property
    def device(self) -> torch.device:
        """Where the LM head is, and states and targets are."""
        return self._head.weight.device

    @property
    def devices(self) -> int:
        """Devices that work on a batch at the same time."""
        return self._group.size

    @property
    def _is_spread(self) -> bool:
        return self._settings.parallel > 1 and self._group.is_alone

    @contextmanager
    def summed_in_parts(self, parts: int) -> Iterator[None]:
        """This whole teacher rounds as one whose matrices are cut over so many processes, see `parallel.parts`."""
        self.forget_shapes()
        try:
            with summed_in_parts(self._model, parts):
                yield
        finally:
            self.forget_shapes()

    @property
    def context_length(self) -> int | None:
        """Longest sequence the teacher was made for; None if its configuration does not say."""
        return getattr(self._config, "max_position_embeddings", None)

    @property
    def bytes_per_token(self) -> int:
        """Memory of a forward pass, roughly, in bytes per token: some hidden states and feed-forward activations."""
        config = self._config
        wide = getattr(config, "intermediate_size", None)
        return activation_bytes(config.hidden_size, wide, self._head.weight.element_size())

    @property
    def operations(self) -> Operations | None:
        """Of a forward pass: 2 per entry of its matrices; None for a teacher with experts or packed weights."""
        if has_experts(self._model) or self._quantization is not None:
            return None
        return Operations(2 * sum(p.numel() for _, p in product_parameters(self._body)), 2 * self._head.weight.numel())

    @property
    def matrix_work(self) -> MatrixWork | None:
        """The operations against the peak of its devices; None where either is not known."""
        return MatrixWork.of(self.operations, self.device, self._head.weight.dtype, self._settings.parallel)

    @property
    def hidden_size(self) -> int:
        """Width d of the hidden states."""
        return int(self._config.get_text_config(decoder=True).hidden_size)

    @property
    def head_weight(self) -> Tensor:
        """The LM head over the real vocabulary, (V_real, d), in the teacher's dtype."""
        return self._head.weight[: self.vocab_size]

    @torch.inference_mode()
    def states(
        self, tokens: Tensor, *, mean: bool, document_start: Tensor | None = None, recorded: bool = True
    ) -> TeacherStates:
        """Hidden states of tokens (B, T) int64. Rows are padded on the right, so no attention mask is needed.

        With document_start (B, T) bool no position sees tokens before its document: position ids start anew at each
        document, by which transformers knows packed sequences. With `recorded` a GPU records the pass over a shape
        that it sees for the second time and keeps the memory for it, see `cuda_graphs`.
        """
        # The others need no mean: only the leader stores states.
        self._group.tell("states", tokens, mean=False, document_start=document_start, recorded=recorded)
        first = self._model.get_input_embeddings().weight.device  # the LM head's too, except where layers are spread
        tokens = to_device(tokens, first)
        if recorded and self._records and document_start is None:
            found = self._captured[mean](tokens)
        else:
            start = document_start
            where = {} if start is None else {"position_ids": to_device(position_ids(start), first)}
            found = self._run(tokens, mean=mean, **where)
        states = TeacherStates(*(found_there.to(self.device) for found_there in found))
        self._led = None if self._group.leads else states.final
        return states

    @torch.inference_mode()
    def targets(
        self, final: Tensor | None, positions: Tensor, labels: Tensor, offsets: Tensor, layout: TargetLayout
    ) -> KeptTargets:
        """The targets of n positions of a batch, on the teacher's device, from its final states (B, T, d).

        positions (n,) int64 are places in the flattened (B, T), with their labels (n,) int64 and offsets (n,) float64
        in [0, 1) of the systematic samples; n is at least 1. In a group `states` must have been called for this batch
        last: each process takes an equal share of the positions, from the final states that it has itself.
        """
        self._group.tell("targets", None, positions, labels, offsets, layout)
        final = self._led if final is None else final
        assert final is not None, "states is called first"
        count = len(positions)
        mine = self._group.share(count)
        positions, labels, offsets = (to_device(given[mine], self.device) for given in (positions, labels, offsets))
        parts = [
            keep_targets(logits, labels[chunk], layout, offsets[chunk])
            for chunk, logits in self.logits_in_chunks(final.flatten(0, 1)[positions])
        ]
        return KeptTargets(*(self._group.joined(part, count) for part in vars(join(parts)).values()))

    def _run(self, tokens: Tensor, *, mean: bool, **where: Tensor) -> tuple[Tensor, ...]:
        """The fields of `TeacherStates` that are asked for."""
        total = LayerSum()

        def add(_layer: nn.Module, _inputs: tuple[Tensor, ...], output: object) -> None:
            total.add(state_of(output))

        hooks = [layer.register_forward_hook(add) for layer in self._layers[:-1]] if mean else []
        try:
            with nullcontext() if where else rows_not_packed():
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
        """Logits (chunk, V_real) in the teacher's dtype of final states (n, d), each with its slice of the n positions.

        They are what the model itself gives, with what it does behind its head, such as a soft cap. Logits of padding
        rows of the vocabulary are left out. The size of a chunk depends on the vocabulary and the kind of device alone,
        so memory does not grow with the batch or the sequence.
        """
        elements = GPU_HEAD_CHUNK_ELEMENTS if self.device.type == "cuda" else HEAD_CHUNK_ELEMENTS
        size = max(1, elements // self._head.weight.shape[0])
        for start in range(0, len(final), size):
            where = slice(start, min(start + size, len(final)))
            logits = self._head(final[where])[:, : self.vocab_size]
            if self._transform is not None:
                self._transform.write(logits)
            yield where, logits

    def identity(self) -> TeacherIdentity:
        """What the manifest says of the teacher; the weights' digest covers every tensor in the dtype it runs in."""
        config = self._config
        fields = {k: v for k, v in self._model.config.to_dict().items() if k not in _INCIDENTAL_CONFIG_KEYS}
        if self._quantization is not None:
            fields["quantization_config"] = parse_json(self._model.config.quantization_config.to_json_string())
        scale = self._embedding_scale
        return TeacherIdentity(
            name=self._settings.model,
            revision=getattr(self._model.config, "_commit_hash", None) or self._settings.revision,
            model_type=self._model.config.model_type,
            config_sha256=hashlib.sha256(canonical_json(fields)).hexdigest(),
            weights_sha256=self._weights_sha256(),
            dtype=self._settings.dtype,
            attention=self._settings.attention,
            hidden_size=config.hidden_size,
            num_layers=len(self._layers),
            num_heads=head_count(config),
            padded_vocab_size=self._head.weight.shape[0],
            embedding_scale=None if scale is None or math.isclose(scale, 1.0, rel_tol=1e-4) else scale,
            logit_transform=self._transform,
            quantization=self._quantization,
        )

    def _packed_digest(self) -> str | None:
        """The digest of packed weights, taken before they are used; None where they are not packed.

        bitsandbytes lays 4-bit weights out anew in their first product on a CPU; to list them after that spoils them.
        compressed-tensors unpacks them when the whole model is first called, which the decoder alone never is.
        """
        if self._quantization is None or not self._group.is_alone:
            return None
        if self._settings.carry == "body":
            raise UserError(
                f"teacher.carry body: the weights of {self._settings.model} are packed ({self._quantization}), with "
                "which no student can begin; set it to head"
            )
        digest = weights_sha256(self._model.state_dict())
        with torch.no_grad():
            self._model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False)
        return digest

    def _weights_sha256(self) -> str:
        """Of every tensor as it runs; not computed again for a checkpoint that was read so before."""
        if self._digest is not None:
            return self._digest

        def compute() -> str:
            self._group.tell("lend_weights")
            return weights_sha256(whole_one_by_one(self._model.state_dict()))

        if not self._checkpoint:
            return compute()
        how = {"dtype": self._settings.dtype, "transformers": transformers.__version__, "torch": torch.__version__}
        return remembered_sha256(self._checkpoint, how, compute)

    def lend_weights(self, *, body: bool = False) -> None:
        """Take part, in a process that does not lead, in making the model's tensors whole, or its decoder's."""
        for _ in whole_one_by_one((self._body if body else self._model).state_dict()):
            if (
                self.device.type == "cuda"
            ):  # the leader takes its time over each, and NCCL has patience with one at most
                torch.cuda.synchronize(self.device)

    @property
    def embeds_plainly(self) -> bool:
        """Whether the first layer reads the token embedding or a multiple of it, and nothing else."""
        return self._embedding_scale is not None

    def tokenizer_identity(self) -> TokenizerIdentity:
        """What the manifest says of the tokenizer. Raises `UserError` if it has no EOS."""
        tokenizer = self.tokenizer
        eos = tokenizer.eos_token_id
        if not isinstance(eos, int):
            raise UserError(f"teacher.model {self._settings.model}: its tokenizer has no end-of-sequence token")
        return TokenizerIdentity(
            sha256=tokenizer_digest(tokenizer),
            vocab_size=self.vocab_size,
            eos_token_id=eos,
            pad_token_id=tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else eos,
            has_files=True,
        )

    def files(self) -> dict[str, bytes]:
        """The objects of a cache that hold the teacher's embedding, LM head and tokenizer, and its body if asked for.

        With them a student needs nothing but the cache: no Hub, no teacher, no doubt about which weights.
        """
        frozen = {"embedding.weight": self._model.get_input_embeddings().weight}
        if self._head.weight.data_ptr() != frozen["embedding.weight"].data_ptr():
            frozen["lm_head.weight"] = self._head.weight
        if self._head.bias is not None:
            frozen["lm_head.bias"] = self._head.bias
        tensors = {name: weight.detach().contiguous().cpu() for name, weight in frozen.items()}
        body = self._body_files() if self._settings.carry == "body" else {}
        return {FROZEN_WEIGHTS_KEY: save(tensors), **body, **tokenizer_files(self.tokenizer)}

    def _body_files(self) -> dict[str, bytes]:
        """Decoder layers and last norm, by the decoder's names and in the teacher's dtype, and the configuration."""
        self._group.tell("lend_weights", body=True)
        embedding = self._model.get_input_embeddings().weight.data_ptr()
        tensors = {
            name: tensor.detach().contiguous().cpu()
            for name, tensor in whole_one_by_one(self._body.state_dict())
            if tensor.data_ptr() != embedding
        }
        config = {k: v for k, v in self._config.to_dict().items() if k not in _INCIDENTAL_CONFIG_KEYS}
        return {BODY_KEY: save(tensors), TEACHER_CONFIG_KEY: canonical_json(config)}


def position_ids(document_start: Tensor) -> Tensor:
    """Index of each token in its document, (B, T) int64, from the documents' starts (B, T) bool.

    Tokens before a row's first start count from the row's beginning.
    """
    index = torch.arange(document_start.shape[1]).expand(document_start.shape)
    return index - torch.where(document_start, index, 0).cummax(dim=1).values


_INCIDENTAL_CONFIG_KEYS = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "distributed_config",
}
"""Keys of a configuration that do not change what the model computes in the manifest's dtype."""
