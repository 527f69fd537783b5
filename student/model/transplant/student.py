"""The student that begins as its teacher: tokens to hidden states, with the interface of `XLSTMStudent`.

Its layers are the teacher's own decoder layers out of transformers, with a `Mixer` for `self_attn`, or with `Attention`
where a layer keeps it. The embedding and the head are frozen buffers, as in `XLSTMStudent`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from student.model.blocks import RecurrentState
from student.model.frozen import FROZEN_NAMES, FrozenHead, FrozenWeights, head_over
from student.model.recorded import can_compile
from student.model.state import compact
from student.model.transplant.attention import Attention
from student.model.transplant.body import put_body
from student.model.transplant.families import Body, Config, Rotary, build_body
from student.model.transplant.mixer import Mixer
from student.model.transplant.mixing import Mixing, mixing_of
from student.model.transplant.options import MixerShape, require_layers
from student.model.xlstm import PREFILL_LENGTH, ParameterCounts

INITIAL_SPREAD = 0.02
"""Standard deviation of the matrices of a student without a body."""


class TransplantStudent(nn.Module):
    """Tokens to hidden states; the LM head is applied by whoever needs logits, in chunks.

    `parameters()` and, unless `keep_frozen`, `state_dict()` are what can be trained, the body under its teacher's
    names. With `recompute` each layer's activations are computed again in the backward pass.
    """

    embedding: Tensor
    lm_head: Tensor | None
    lm_head_bias: Tensor | None
    trains_compiled: bool = False
    """Whether passes with gradients run compiled, for who trains with one shape of batch; see `can_compile`."""
    teacher_config: Config
    """The teacher's configuration, as transformers writes it."""

    def __init__(
        self,
        layers: nn.ModuleList,
        norm: nn.Module,
        rotary: Rotary,
        shape: MixerShape,
        frozen: FrozenWeights,
        *,
        kernels: Literal["auto", "naive"] = "auto",
        recompute: bool = False,
        keep_frozen: bool = False,
    ) -> None:
        super().__init__()
        self.layers, self.norm = layers, norm
        self.rotary, self.shape, self.kernels, self.recompute = rotary, shape, kernels, recompute
        self.vocab_size, self.embedding_scale = frozen.vocab_size, frozen.embedding_scale
        self.logit_transform = frozen.logit_transform
        self.register_buffer("embedding", frozen.embedding, persistent=keep_frozen)
        self.register_buffer("lm_head", frozen.lm_head, persistent=keep_frozen)
        self.register_buffer("lm_head_bias", frozen.lm_head_bias, persistent=keep_frozen)

    @property
    def head(self) -> FrozenHead:
        """The LM head, views of the frozen matrices where they have the rows."""
        weight = self.embedding if self.lm_head is None else self.lm_head
        return head_over(weight, self.lm_head_bias, self.vocab_size, self.logit_transform)

    def forward(self, tokens: Tensor, document_start: Tensor | None = None, *, transfer: bool = False) -> Tensor:
        """Hidden states (B, T, d) after the last norm, from tokens (B, T).

        Where `document_start` (B, T) is true nothing of what came before is seen: each document's hidden states are
        those it would have in a row of its own. With `transfer` it is `attention_transfer`, for who can only call the
        module.
        """
        if transfer:
            return self.attention_transfer(tokens, document_start)
        embedded = self._embedded(tokens)
        compiled = self._compiles
        if compiled:
            # Else the first layer, whose input needs no gradient, would be compiled apart from the others.
            embedded = embedded.detach().requires_grad_()
        return self._run(embedded, self._mixing(embedded, document_start, None, want_state=False, compiled=compiled))

    def prefill(
        self, tokens: Tensor, state: RecurrentState | None = None, document_start: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """Hidden states (B, T, d) of tokens (B, T) that follow `state`, and the state to `step` on from.

        Equal to `forward` over the whole row up to rounding, in memory that does not grow with T but for the result.
        Where `document_start` (B, T) is true, nothing of what came before is seen, `state` included.
        """
        parts = []
        for begin in range(0, tokens.shape[1], PREFILL_LENGTH):
            span = slice(begin, begin + PREFILL_LENGTH)
            starts = None if document_start is None else document_start[:, span]
            embedded = self._embedded(tokens[:, span])
            mixing = self._mixing(embedded, starts, state, want_state=True)
            parts.append(self._run(embedded, mixing))
            state = mixing.after
        assert state is not None
        # What is left of a long sequence must not keep all of it in memory.
        return torch.cat(parts, dim=1), compact(state)

    def step(self, tokens: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        """One token a row, (B, 1): hidden states (B, 1, d) and the next state; it grows where layers keep attention."""
        return self.prefill(tokens, state)

    def attention_transfer(self, tokens: Tensor, document_start: Tensor | None = None) -> Tensor:
        """How far each mixer's output is from softmax attention's on the same input, and how large the latter is.

        Sums of squares (2, layers, B, T) from tokens (B, T), float32 or wider; `student.loss.transfer` makes the loss
        of them. Every layer's input is that of a student whose layers all had softmax attention. Gradients reach
        the mixers alone.
        """
        x = self._embedded(tokens)
        seen: list[tuple[Tensor, Tensor]] = []
        as_mixer = self._mixing(x, document_start, None, want_state=False, compiled=self._compiles, rotated=True)
        as_attention = replace(as_mixer, compiled=False, transfer=seen)
        errors = []
        for layer in self.layers:
            with torch.no_grad():
                x = layer(x, mixing=as_attention)
            hidden_states, target = seen.pop()
            # The mixer is called as a module, whose hooks gather its parameters under ZeRO 3.
            found, _ = self._called(layer.get_submodule("self_attn"), hidden_states, as_mixer)
            errors.append(_squares(found, target))
        return torch.stack(errors, dim=1)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits over real tokens, (..., V), of hidden states (..., d)."""
        return self.head.raw_logits(hidden_states)

    def parameter_counts(self) -> ParameterCounts:
        trainable = sum(parameter.numel() for parameter in self.parameters())
        bias = 0 if self.lm_head_bias is None else self.lm_head_bias.numel()
        return ParameterCounts(trainable, trainable + 2 * self.embedding.numel() + bias)

    def new_names(self) -> set[str]:
        """Names of the parameters that no teacher has; the others are its body's."""
        body = (".q_proj.", ".k_proj.", ".v_proj.", ".o_proj.", ".q_norm.", ".k_norm.")
        names = (name for name, _ in self.named_parameters() if ".self_attn." in name)
        return {name for name in names if not any(part in name for part in body)}

    def _embedded(self, tokens: Tensor) -> Tensor:
        """What the first layer reads, (B, T, d)."""
        embedded = functional.embedding(tokens, self.embedding)
        return embedded if self.embedding_scale is None else embedded * self.embedding_scale

    def _run(self, x: Tensor, mixing: Mixing) -> Tensor:
        if self.training and any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers):
            # transformers' layers then compute again what they gave; torch's older way to do so gives gradients only
            # where an input asks for one.
            x = x.requires_grad_()
        for layer in self.layers:
            x = self._called(layer, x, mixing)
        hidden_states: Tensor = self.norm(x)
        return hidden_states

    def _called(self, module: nn.Module, x: Tensor, mixing: Mixing) -> Any:
        """What a layer or a mixer gives; with `recompute`, without keeping its activations."""
        call = _compiled_call() if mixing.compiled else _call
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(call, module, x, mixing, use_reentrant=False, preserve_rng_state=False)
        return call(module, x, mixing)

    @property
    def _compiles(self) -> bool:
        return self.trains_compiled and torch.is_grad_enabled()

    @property
    def can_compile(self) -> bool:
        """Whether layers may run compiled."""
        return self.kernels == "auto" and can_compile(self)

    def _mixing(
        self,
        embedded: Tensor,
        document_start: Tensor | None,
        state: RecurrentState | None,
        *,
        want_state: bool,
        compiled: bool = False,
        rotated: bool = False,
    ) -> Mixing:
        rows, length, _ = embedded.shape
        return mixing_of(
            self.shape,
            self.rotary,
            document_start,
            state,
            size=(rows, length),
            like=embedded,
            want_state=want_state,
            compiled=compiled,
            rotated=rotated,
        )


def _squares(found: Tensor, target: Tensor) -> Tensor:
    """Σ‖found - target‖² and Σ‖target‖² over the width, (2, B, T), float32 or wider."""
    wide = torch.promote_types(found.dtype, torch.float32)
    found, target = found.to(wide), target.to(wide)
    return torch.stack([(found - target).square().sum(-1), target.square().sum(-1)])


def _call(module: nn.Module, x: Tensor, mixing: Mixing) -> Any:
    return module(x, mixing=mixing)


@cache
def _compiled_call() -> Callable[[nn.Module, Tensor, Mixing], Any]:
    """`_call` compiled, once for all layers. Made when it is needed: importing the compiler takes a second."""
    return torch.compile(_call, dynamic=False, fullgraph=True)


def build_transplant(
    config: Config,
    frozen: FrozenWeights,
    body: Mapping[str, Tensor] | None,
    shape: MixerShape,
    *,
    seed: int,
    kernels: Literal["auto", "naive"] = "auto",
    recompute: bool = False,
    keep_frozen: bool = False,
) -> TransplantStudent:
    """A student in float32 whose layers are those of a teacher, mixers in place of attention.

    Args:
        config: the teacher's configuration, as transformers writes it.
        frozen: its embedding and head.
        body: its layers and last norm, as `body.body_tensors` gives them; None for random ones, to be loaded over.
        shape: what the mixers add.
        seed: of what is random; global random state is kept.
        kernels: `naive` for the twins of everything that runs over a sequence.
        recompute: compute activations again in the backward pass.
        keep_frozen: have the frozen matrices in `state_dict()` too.

    Raises `UserError` for a teacher whose layers do not fit, and for a body that is not the configuration's. Under
    `torch.device("meta")`, without a body, nothing is allocated.

    """
    parts = _without_memory(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _put_mixers(parts, shape, kernels)
        student = TransplantStudent(
            parts.layers,
            parts.norm,
            parts.rotary,
            shape,
            frozen,
            kernels=kernels,
            recompute=recompute,
            keep_frozen=keep_frozen,
        )
        if body is None:
            _random_body(student)
    student.teacher_config = dict(config)
    if body is not None:
        put_body(student, body, student.new_names() | set(FROZEN_NAMES.values()))
    return student


def _put_mixers(parts: Body, shape: MixerShape, kernels: Literal["auto", "naive"]) -> None:
    """In place of attention, but for the layers that keep it."""
    require_layers(shape, len(parts.layers))
    for number, layer in enumerate(parts.layers):
        kept, attention = number in shape.attention_at, layer.self_attn
        layer.self_attn = Attention(attention) if kept else Mixer(attention, parts.hidden_size, shape, kernels)


def _without_memory(config: Config) -> Body:
    with torch.device("meta"):
        return build_body(config)


@torch.no_grad()
def _random_body(student: TransplantStudent) -> None:
    new, device = student.new_names(), torch.get_default_device()
    body = {name: old for name, old in student.named_parameters() if name not in new}
    values = {name: torch.empty_like(old, device=device) for name, old in body.items()}
    for name, value in values.items():
        if value.dim() > 1:
            value.normal_(std=INITIAL_SPREAD)
        else:
            value.fill_(0 if name.endswith("bias") else 1)
    student.load_state_dict(values, strict=False, assign=True)
