"""The student that is a causal language model of transformers, with the interface of `XLSTMStudent`.

In the head's place something stands that gives the hidden states on. So what a model does before its head is followed,
whatever it is; what it does to its logits behind the head is found by `probes`, and done by `head`.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from student.model.blocks import RecurrentState
from student.model.causal_lm.head import AtHead, StandIn, places_in_documents, require_linear, require_vocabulary
from student.model.frozen import FrozenHead, FrozenWeights, head_over
from student.model.state import KEY_VALUES
from student.model.transplant.families import Config
from student.model.xlstm import PREFILL_LENGTH, ParameterCounts

if TYPE_CHECKING:  # importing transformers' models takes seconds, and every training imports this module
    from transformers import Cache, PreTrainedModel
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.modeling_outputs import CausalLMOutputWithPast


class CausalLMStudent(nn.Module):
    """Tokens to hidden states, as they come to the LM head; the head is applied by whoever needs logits, in chunks.

    `parameters()` are what is trained. Its own embedding and head are among them; with `frozen` matrices these are the
    teacher's, and buffers.
    """

    can_compile = False
    """No pass of it is compiled or recorded, see `student.model.recorded`."""
    trains_compiled = False

    def __init__(self, model: "PreTrainedModel", vocab_size: int, frozen: FrozenWeights | None = None) -> None:
        super().__init__()
        self.model = model
        self.vocab_size = vocab_size
        self.embedding_scale = None if frozen is None else frozen.embedding_scale
        self.logit_transform: LogitTransform | None = None  # set by who tries the model, see `probes`
        self.trains_head = frozen is None
        where = str(model.config.model_type)
        self._head = [require_linear(model.get_output_embeddings(), where)]  # in a list: it is the model's module
        require_vocabulary(len(self._head[0].weight), vocab_size)
        _require_parameters_only(model)
        self._wide = [name for name, buffer in self.named_buffers() if buffer.is_floating_point()]
        if frozen is not None:
            _freeze(model.get_input_embeddings(), frozen.embedding, None)
            _freeze(self._head[0], self._tied_or(frozen.lm_head), frozen.lm_head_bias)
        takes = inspect.signature(model.forward).parameters
        self._past = "past_key_values" if "past_key_values" in takes else "cache_params"  # Mamba's
        self._stand_in = StandIn()
        self._head[0].forward = self._stand_in  # type: ignore[method-assign, assignment]

    @property
    def config(self) -> Config:
        """The model's configuration, as transformers writes it: builds the same model, with random weights."""
        return cast(Config, self.model.config.to_dict())

    @property
    def embedding(self) -> Tensor:
        """(V_padded, d)"""
        return cast(Tensor, self.model.get_input_embeddings().weight)

    @property
    def own_head(self) -> Tensor | None:
        """The weight of the LM head where it is the student's own, None where it is the teacher's."""
        return self._head[0].weight if self.trains_head else None

    @property
    def head(self) -> FrozenHead:
        """The LM head, views of its matrices where they have the rows; trained where it is the student's own.

        Under ZeRO 3 it is whole within `at_head` alone, and empty elsewhere.
        """
        weight, bias = self._head[0].weight, self._head[0].bias
        if weight.dim() == 2:
            return head_over(weight, bias, self.vocab_size, self.logit_transform)
        return FrozenHead(weight, bias, transform=self.logit_transform)

    def forward(self, tokens: Tensor, document_start: Tensor | None = None, *, at_head: AtHead | None = None) -> Tensor:
        """Hidden states (B, T, d) as they come to the head, from tokens (B, T); or what `at_head` makes of them there.

        Where `document_start` (B, T) is true, nothing of what came before is seen.
        """
        places = {} if document_start is None else {"position_ids": places_in_documents(document_start)}
        return self._run(at_head, input_ids=tokens, use_cache=False, **places)[0]

    def prefill(
        self, tokens: Tensor, state: RecurrentState | None = None, document_start: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """Hidden states (B, T, d) of tokens (B, T) that follow `state`, and the state after them, for `step`.

        Where `document_start` (B, T) is true a row's text begins: what comes before it, `state` included, is padding,
        whose own hidden states mean nothing. The state, keys and values of all tokens, grows with them; the one passed
        in must not be used again.
        """
        parts = []
        for begin in range(0, tokens.shape[1], PREFILL_LENGTH):
            span = slice(begin, begin + PREFILL_LENGTH)
            starts = None if document_start is None else document_start[:, span]
            hidden_states, state = self._prefill_part(tokens[:, span], state or {}, starts)
            parts.append(hidden_states)
        assert state is not None
        return torch.cat(parts, dim=1), state

    def step(self, tokens: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        """One token per row, (B, 1): hidden states (B, 1, d) and the next state."""
        return self.prefill(tokens, state)

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits over real tokens, (..., V), of hidden states (..., d)."""
        return self.head.raw_logits(hidden_states)

    def parameter_counts(self) -> ParameterCounts:
        """Frozen matrices count as two, as everywhere; the student's own once where they are one."""
        trainable = sum(parameter.numel() for parameter in self.parameters())
        if self.trains_head:
            return ParameterCounts(trainable, trainable)
        bias = self._head[0].bias
        return ParameterCounts(
            trainable, trainable + 2 * self.embedding.numel() + (0 if bias is None else bias.numel())
        )

    def recompute(self) -> None:
        """Compute activations again in the backward pass."""
        if not self.model.supports_gradient_checkpointing:
            raise UserError(f"training.recompute: a {self.model.config.model_type} does not know how; leave it out")
        # Its older name; newer versions of transformers warn of that one.
        name = "activation_checkpointing_enable"
        enable = getattr(self.model, name, None) or self.model.gradient_checkpointing_enable
        enable({"use_reentrant": False, "preserve_rng_state": False})

    def _run(self, at_head: AtHead | None, **inputs: object) -> "tuple[Tensor, CausalLMOutputWithPast]":
        """What `forward` gives, and what the model does."""
        self._stand_in.ask = at_head
        try:
            outputs: CausalLMOutputWithPast = self.model(**inputs)
            found = outputs.logits if self.logit_transform is None else self._stand_in.found
        finally:
            self._stand_in.ask = self._stand_in.found = None
        return cast(Tensor, found), outputs

    def _prefill_part(
        self, tokens: Tensor, state: RecurrentState, starts: Tensor | None
    ) -> tuple[Tensor, RecurrentState]:
        past, length = state.get(KEY_VALUES, {}), tokens.shape[1]
        seen = torch.ones_like(tokens, dtype=torch.bool)
        if past:
            seen = torch.cat([past["seen"], seen], dim=1)
        if starts is not None and bool(starts.any()):
            if past and _recurs(past["cache"]):
                raise UserError(f"a {self.model.config.model_type} cannot forget padding; give prompts one at a time")
            places = torch.arange(seen.shape[1], device=seen.device)
            first = torch.where(starts, places[-length:], 0).amax(dim=1, keepdim=True)
            seen = seen & (places >= first)
        cache, masked = {self._past: past.get("cache")}, self._masked(seen, length)
        hidden_states, found = self._run(None, input_ids=tokens, use_cache=True, **cache, **masked)
        return hidden_states, {KEY_VALUES: {"cache": getattr(found, self._past), "seen": seen}}

    def _masked(self, seen: Tensor, length: int) -> dict[str, Tensor]:
        """What tells a model of padding, for the last `length` of all tokens (B, N) so far."""
        if self._past == "cache_params":  # a recurrence: what came before is in its state
            seen = seen[:, -length:]
            return {} if bool(seen.all()) else {"attention_mask": seen.long()}
        # Left out where they say nothing: not every model takes them.
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
        return {} if bool(seen.all()) else {"attention_mask": seen.long(), "position_ids": positions}

    def _tied_or(self, lm_head: Tensor | None) -> Tensor:
        return self.embedding if lm_head is None else lm_head

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CausalLMStudent":
        """Move or cast; rotary frequencies and the like stay as wide as they are, as transformers keeps them."""
        wide = {name: self.get_buffer(name) for name in self._wide}
        tied = not self.trains_head and self._head[0].weight is self.embedding
        if tied:  # else each of the two would be moved by itself
            self._head[0].register_buffer("weight", None, persistent=False)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in wide.items():
            holder, _, leaf = name.rpartition(".")
            module = self.get_submodule(holder)
            setattr(module, leaf, before.to(getattr(module, leaf).device))
        if tied:
            self._head[0].register_buffer("weight", self.embedding, persistent=False)
        return self


def build_causal_lm(
    config: Config, vocab_size: int, *, seed: int, frozen: FrozenWeights | None = None
) -> CausalLMStudent:
    """A student in float32 with random weights that depend on the configuration and `seed` alone.

    With `frozen` its embedding and head are the teacher's. Raises `UserError` for another vocabulary. Global random
    state is kept; under `torch.device("meta")` nothing is allocated.
    """
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(configured(config), dtype=torch.float32)
    return CausalLMStudent(model, vocab_size, frozen)


def configured(config: Config) -> "PreTrainedConfig":
    """A configuration out of what transformers wrote of one, without dropout: no student has any."""
    from transformers import AutoConfig

    return without_dropout(AutoConfig.for_model(**config))


def without_dropout(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The configuration with every dropout at 0, by which a run also continues to the bit."""
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in name or name.endswith("_pdrop")):
            setattr(config, name, 0.0)
    return config


def _recurs(cache: "Cache") -> bool:
    """Whether a layer's state is a recurrence, which no mask reaches later."""
    return any(hasattr(layer, "recurrent_states") for layer in cache.layers)


def _require_parameters_only(model: "PreTrainedModel") -> None:
    """Raise `UserError` for weights that no optimizer trains: checkpoints would not have them."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in model.state_dict():
        if name not in parameters:
            raise UserError(f"{model.config.model_type}: {name} is no parameter, and would not be kept; take another")


def _freeze(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if getattr(module, name, None) is None:
            continue
        delattr(module, name)
        module.register_buffer(name, tensor, persistent=False)
