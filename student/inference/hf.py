"""Exported students as transformers models; `student.transformers` makes the `Auto` classes know them.

The recurrent state takes the place of a key-value cache; its size is constant. The frozen matrices are stored with the
model, so a folder loads by itself.
"""

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import can_return_tuple

from student.inference.hf_config import DistilTransplantConfig, DistilXLSTMConfig, StudentConfig
from student.inference.hf_inputs import document_starts, ends_in_padding, require_known
from student.model.blocks import RecurrentState
from student.model.frozen import FrozenWeights
from student.model.state import select_rows
from student.model.student import Student
from student.model.transplant.student import TransplantStudent, build_transplant
from student.model.xlstm import XLSTMStudent, build_student

INITIAL_SPREAD = 0.02
"""Standard deviation of the random frozen matrices of a model that no weights are loaded into."""


@dataclass
class StudentState:
    """The recurrent state and the number of tokens it has seen, with the methods that `generate` expects of a cache."""

    recurrent: RecurrentState
    length: int
    ended: bool = False
    """Whether a row ended in padding, after which nothing can follow."""
    is_compileable = False
    is_croppable = False

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, rows: Tensor) -> None:
        self.recurrent = select_rows(self.recurrent, rows)


class StudentForCausalLM(PreTrainedModel, GenerationMixin):
    """A student with its LM head."""

    student: Student
    base_model_prefix = "student"
    supports_gradient_checkpointing = True
    _is_stateful = True

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StudentState | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), or of the last `logits_to_keep` positions, from tokens (B, T).

        Rows may be padded on the left, where `attention_mask` is 0; each gives the logits it would give alone. Where
        `position_ids` are 0 a document begins, which gives the logits it would give alone. After padding on the right
        a row cannot be continued, but the logits before it are right. `labels` (B, T) are the tokens themselves, with
        -100 where none counts; with them the result has a `loss`. Raises `ValueError` for padding between tokens, where
        `use_cache` is given as true for padding on the right, for going on after it, and for what a student has not.
        """
        found = self.base_model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.student.logits(found.last_hidden_state[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=found.past_key_values)

    @property
    def base_model(self) -> "StudentBackbone":
        """The student without its LM head, for callers who apply that themselves."""
        return StudentBackbone(self)

    def get_output_embeddings(self) -> nn.Linear:
        """The LM head over real tokens: a view of the frozen matrix, for reading only.

        Logits are what `config.logit_transform`, where there is one, makes of its product.
        """
        head = self.student.head
        with torch.device("meta"):
            view = nn.Linear(head.weight.shape[1], head.vocab_size, bias=head.bias is not None)
        view.weight = nn.Parameter(head.weight[: head.vocab_size], requires_grad=False)
        if head.bias is not None:
            view.bias = nn.Parameter(head.bias[: head.vocab_size], requires_grad=False)
        return view

    def get_input_embeddings(self) -> NoReturn:
        raise NotImplementedError(
            "get_input_embeddings: a student's embedding is its teacher's, frozen, and no module: read "
            "model.student.embedding; it cannot be replaced or resized"
        )

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: Any) -> None:
        """Do nothing: a student's modules initialise themselves."""


class DistilXLSTMForCausalLM(StudentForCausalLM):
    """The xLSTM student with its LM head."""

    config_class = DistilXLSTMConfig
    student: XLSTMStudent

    def __init__(self, config: DistilXLSTMConfig) -> None:
        super().__init__(config)
        self.student = build_student(config.shape, _frozen_matrices(config), context_length=1, seed=0, keep_frozen=True)
        self.post_init()


class DistilTransplantForCausalLM(StudentForCausalLM):
    """The student that begins as its teacher, with its LM head.

    Raises `UserError` for a teacher's family or a mixer that this version does not know.
    """

    config_class = DistilTransplantConfig
    student: TransplantStudent

    def __init__(self, config: DistilTransplantConfig) -> None:
        super().__init__(config)
        self.student = build_transplant(
            config.layers, _frozen_matrices(config), None, config.shape, seed=0, keep_frozen=True
        )
        self.post_init()


STUDENTS = (DistilXLSTMForCausalLM, DistilTransplantForCausalLM)
"""All kinds of students."""


def model_class(config: StudentConfig) -> type[StudentForCausalLM]:
    """The kind of student that a configuration is of."""
    return next(kind for kind in STUDENTS if isinstance(config, kind.config_class))


@dataclass(frozen=True)
class StudentBackbone:
    """Tokens to hidden states after the last norm, called as transformers calls a model without its LM head."""

    model: StudentForCausalLM

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: StudentState | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """As the model's `forward`, with the hidden states (B, T, d) in place of logits."""
        config, past = self.model.config, past_key_values
        outputs = ("output_hidden_states", "output_attentions")
        require_known(past, StudentState, inputs_embeds, {n: kwargs.get(n, getattr(config, n, False)) for n in outputs})
        if input_ids is None or input_ids.numel() == 0:
            raise ValueError("input_ids: no tokens; give one at least")
        wanted = config.use_cache and not self.model.training if use_cache is None else use_cache
        length = None if past is None else past.length
        starts = document_starts(attention_mask, position_ids, input_ids, length, kwargs)
        if not wanted and past is None:
            return BaseModelOutputWithPast(last_hidden_state=self.model.student(input_ids, starts))
        ended = ends_in_padding(attention_mask)
        if (ended and use_cache) or (past is not None and past.ended):
            raise ValueError(
                "attention_mask: rows are padded on the right, and cannot go on from there; pad on the left"
            )
        hidden_states, state = self._advance(input_ids, past, starts)
        state.ended = ended
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=state)

    def _advance(self, tokens: Tensor, past: StudentState | None, starts: Tensor | None) -> tuple[Tensor, StudentState]:
        student = self.model.student
        if past is None:
            hidden_states, recurrent = student.prefill(tokens, None, starts)
            return hidden_states, StudentState(recurrent, tokens.shape[1])
        if tokens.shape[1] == 1 and starts is None:
            hidden_states, past.recurrent = student.step(tokens, past.recurrent)
        else:
            hidden_states, past.recurrent = student.prefill(tokens, past.recurrent, starts)
        past.length += tokens.shape[1]
        return hidden_states, past


def _frozen_matrices(config: StudentConfig) -> FrozenWeights:
    """Random matrices of the configured sizes, to be replaced by loaded weights."""
    size = config.padded_vocab_size, config.hidden_size
    return FrozenWeights(
        embedding=torch.empty(size).normal_(std=INITIAL_SPREAD),
        lm_head=None if config.tie_word_embeddings else torch.empty(size).normal_(std=INITIAL_SPREAD),
        lm_head_bias=torch.zeros(config.padded_vocab_size) if config.head_bias else None,
        vocab_size=config.vocab_size,
        embedding_scale=config.embedding_scale,
        logit_transform=config.transform,
    )
