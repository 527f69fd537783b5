"""Tries on a few tokens, before anything is built, that a model can serve as a teacher.

A model that fails one of these would give a wrong cache without any sign of it, so each is an error.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from delta_common.errors import UserError
from delta_common.logits.configured import UnknownTransformError, factors, injected_logits, transform_behind
from delta_common.logits.transform import LogitTransform
from teacher_cache.teacher.parts import quantization, state_of, text_config

LENGTH = 16
"""Tokens of a probe."""
SAME = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}
"""Largest difference of states that should be equal, relative to the largest state. Kernels round differently for
other shapes; a model that looks ahead or has other layers is off by a tenth or more."""
FACTOR = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-3}
"""Largest relative difference of two factors that are one: each is taken from many states, whose rounding averages."""
MULTIPLE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Share of the first layer's input that may not be a multiple of the embedding: bfloat16 rounds by 0.004."""


@dataclass(frozen=True)
class Subject:
    """A model under test: the decoder without its LM head, the head, the list of layers, and its name for messages."""

    model: PreTrainedModel
    body: nn.Module
    head: nn.Linear
    layers: nn.ModuleList
    name: str
    dtype: str
    """The setting teacher.dtype, for messages."""
    vocab_size: int

    @property
    def tokens(self) -> Tensor:
        """(1, LENGTH) int64, all different where the vocabulary allows."""
        return (torch.arange(LENGTH, device=self.head.weight.device)[None] * 7 + 3) % self.vocab_size

    def final(self, tokens: Tensor) -> Tensor:
        """States (B, T, d) after the final norm."""
        states: Tensor = self.body(input_ids=tokens, use_cache=False).last_hidden_state
        return states.to(self.head.weight.device)


@torch.inference_mode()
def require_teacher(subject: Subject) -> LogitTransform | None:
    """What the model does to its LM head's logits; raises `UserError` if it cannot serve as a teacher.

    It must be a causal decoder with finite logits, do nothing to its linear head's output but what its configuration
    names, and have the layers that were found in it. The error names the model and the remedy.
    """
    require_decoder(subject.model.config, subject.name)
    _require_finite(subject)
    transform = _logit_transform(subject)
    _require_causal(subject)
    _require_layers(subject)
    return transform


@torch.inference_mode()
def embedding_scale(subject: Subject) -> float | None:
    """The factor by which the model multiplies its token embedding before the first layer: √d for Gemma, 1.0 for most.

    None if the first layer reads something other than a multiple of it: learnt positions added, a norm, a projection.
    """
    tokens, read = subject.tokens, _first_input(subject)
    embedding = subject.model.get_input_embeddings()
    stored = embedding.weight[tokens.to(embedding.weight.device)].float()
    if read is None or read.shape != stored.shape:
        return None
    share, read = MULTIPLE[read.dtype], read.to(stored.device).float()
    scale = (read * stored).sum() / stored.square().sum()
    if float((read - scale * stored).norm()) > share * float(read.norm()):
        return None
    return float(scale)


def _first_input(subject: Subject) -> Tensor | None:
    """What the first layer reads, (1, LENGTH, d); None if it is not called with a tensor."""
    seen: list[Tensor] = []

    def keep(_layer: nn.Module, positional: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        found = positional[0] if positional else named.get("hidden_states")
        if isinstance(found, Tensor):
            seen.append(found)

    hook = subject.layers[0].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        subject.final(subject.tokens)
    finally:
        hook.remove()
    return seen[0] if seen else None


def require_decoder(config: object, name: str) -> None:
    """Raise `UserError` for the configuration of an encoder-decoder; `name` is teacher.model."""
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"teacher.model {name}: an encoder-decoder, whose logits depend on a second text; give a decoder-only model"
        )


def _require_finite(subject: Subject) -> None:
    logits = subject.head(subject.final(subject.tokens))[..., : subject.vocab_size]
    if not bool(torch.isfinite(logits).all()):
        remedy = "set teacher.dtype to bfloat16 or float32" if subject.dtype == "float16" else "check its weights"
        raise UserError(
            f"teacher.model {subject.name}: its logits are not finite in {subject.dtype}, on the first tokens tried; "
            f"{remedy}"
        )


def _logit_transform(subject: Subject) -> LogitTransform | None:
    """What lies between the state after the final norm and the logits, beside the head; None for nothing."""
    given, injected, logits = _with_injected_logits(subject)
    config = text_config(subject.model)
    before = _factor_before_head(subject, given)
    try:
        behind = transform_behind(config, injected[: logits.shape[-1]].expand_as(logits), logits)
    except UnknownTransformError as error:
        raise UserError(
            f"teacher.model {subject.name}: changes its logits after the LM head in a way that its configuration does "
            "not name (known are a factor and a soft cap); not supported"
        ) from error
    if before == 1:
        return behind
    then = behind or LogitTransform()
    return LogitTransform(scale=before * then.scale, cap=then.cap)


def _with_injected_logits(subject: Subject) -> tuple[list[Tensor], Tensor, Tensor]:
    """What the head was given, the logits (V_padded,) put in place of its output, and what the model made of them."""
    given: list[Tensor] = []
    injected = injected_logits(len(subject.head.weight), subject.head.weight.device)

    def inject(_head: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given.append(inputs[0].to(subject.head.weight.device))
        return injected.expand_as(output)

    hook = subject.head.register_forward_hook(inject)
    try:
        logits = subject.model(input_ids=subject.tokens, use_cache=False).logits
    finally:
        hook.remove()
    return given, injected, logits


def _factor_before_head(subject: Subject, given: list[Tensor]) -> float:
    """The factor that the configuration names between the final states and what the head was given; 1 for most."""
    final = subject.final(subject.tokens)
    states, bias = final.double(), subject.head.bias
    if given and given[0].shape == final.shape:
        theirs = given[0].double()
        measured = float((theirs * states).sum() / states.square().sum())
        for factor in factors(text_config(subject.model)) if bias is None else [1.0]:
            close = abs(measured / factor - 1) <= FACTOR[final.dtype]
            if close and _equal(theirs / factor, states, final.dtype):
                return factor
    raise UserError(
        f"teacher.model {subject.name}: its LM head reads something else than the last hidden states, and no multiple "
        "that its configuration names; not supported"
    )


def _require_causal(subject: Subject) -> None:
    tokens = subject.tokens
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % subject.vocab_size
    if not _equal(subject.final(tokens)[:, :-1], subject.final(other)[:, :-1]):
        packed = quantization(subject.model)
        if packed is not None:
            raise UserError(
                f"teacher.model {subject.name}: a token changes the states before it, by what {packed} makes of all "
                "tokens of a batch together (as LLM.int8 does); give a checkpoint that is quantised otherwise"
            )
        raise UserError(
            f"teacher.model {subject.name}: a token changes the states before it, so it is no causal language model; "
            "give a decoder that attends to the left only"
        )


def _require_layers(subject: Subject) -> None:
    """The outputs of the layers to be averaged are the hidden states that the model itself reports."""
    outputs: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, found: outputs.append(state_of(found))) for layer in subject.layers
    ]
    try:
        found = subject.body(input_ids=subject.tokens, use_cache=False, output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()
    reported = getattr(found, "hidden_states", None)
    taken = [*outputs[:-1], found.last_hidden_state]
    agree = len(outputs) == len(subject.layers) and all(state.shape == taken[-1].shape for state in taken)
    if agree and reported is not None:
        left = iter(reported)  # some models report the embedding first, some the last state twice
        agree = all(any(_equal(ours, theirs) for theirs in left) for ours in taken)
    if not agree:
        raise UserError(
            f"teacher.model {subject.name}: the list of {len(subject.layers)} modules found in it is not its decoder "
            "layers, whose states would be averaged; not supported"
        )


def _equal(ours: Tensor, theirs: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Up to the rounding of `dtype`, by default theirs."""
    if ours.shape != theirs.shape:
        return False
    largest, ours = float(theirs.abs().max()), ours.to(theirs.device)
    return float((ours.float() - theirs.float()).abs().max()) <= SAME[dtype or theirs.dtype] * largest
