"""An exported student as a transformers model; `student.transformers` makes the `Auto` classes know it.

The recurrent state takes the place of a key-value cache; its size is constant. The frozen matrices are stored with the
model, so a folder loads by itself.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from student.inference.hf_config import DistilXLSTMConfig
from student.model.blocks import RecurrentState
from student.model.frozen import FrozenWeights
from student.model.state import select_rows
from student.model.xlstm import XLSTMStudent, build_student

INITIAL_SPREAD = 0.02
"""Standard deviation of the random frozen matrices of a model that no weights are loaded into."""


@dataclass
class StudentState:
    """The recurrent state and the number of tokens it has seen, with the methods that `generate` expects of a cache."""

    recurrent: RecurrentState
    length: int
    is_compileable = False
    is_croppable = False

    def get_seq_length(self) -> int:
        return self.length

    def reorder_cache(self, rows: Tensor) -> None:
        self.recurrent = select_rows(self.recurrent, rows)


class DistilXLSTMForCausalLM(PreTrainedModel, GenerationMixin):
    """The student with its LM head; `.student` is the `XLSTMStudent`."""

    config_class = DistilXLSTMConfig
    base_model_prefix = "student"
    _is_stateful = True

    def __init__(self, config: DistilXLSTMConfig) -> None:
        super().__init__(config)
        self.student: XLSTMStudent = build_student(
            config.shape, _frozen_matrices(config), context_length=1, seed=0, keep_frozen=True
        )
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: StudentState | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V), or of the last `logits_to_keep` positions, from tokens (B, T).

        Rows may be padded on the left, where `attention_mask` is 0; each gives the logits it would give alone. After
        padding on the right a row cannot be continued, but the logits before it are right. `labels` (B, T) are the
        tokens themselves, with -100 where none counts; with them the result has a `loss`. Raises `ValueError` for
        padding between tokens, and for padding on the right where `use_cache` is given as true.
        """
        wanted = self.config.use_cache and not self.training if use_cache is None else use_cache
        starts = _document_starts(attention_mask, input_ids.shape[1], past_key_values)
        state = None
        if wanted or past_key_values is not None:
            _require_an_end(attention_mask, wanted=bool(use_cache))
            hidden_states, state = self._advance(input_ids, past_key_values, starts)
        else:
            hidden_states = self.student(input_ids, starts)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.student.logits(hidden_states[:, kept])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=state)

    def _advance(self, tokens: Tensor, past: StudentState | None, starts: Tensor | None) -> tuple[Tensor, StudentState]:
        if past is None:
            hidden_states, recurrent = self.student.prefill(tokens, None, starts)
            return hidden_states, StudentState(recurrent, tokens.shape[1])
        if tokens.shape[1] == 1 and starts is None:
            hidden_states, past.recurrent = self.student.step(tokens, past.recurrent)
        else:
            hidden_states, past.recurrent = self.student.prefill(tokens, past.recurrent, starts)
        past.length += tokens.shape[1]
        return hidden_states, past

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _init_weights(self, module: Any) -> None:
        """Do nothing: xlstm's modules initialise themselves."""


def _frozen_matrices(config: DistilXLSTMConfig) -> FrozenWeights:
    """Random matrices of the configured sizes, to be replaced by loaded weights."""
    size = config.padded_vocab_size, config.hidden_size
    return FrozenWeights(
        embedding=torch.empty(size).normal_(std=INITIAL_SPREAD),
        lm_head=None if config.tie_word_embeddings else torch.empty(size).normal_(std=INITIAL_SPREAD),
        lm_head_bias=torch.zeros(config.padded_vocab_size) if config.head_bias else None,
        vocab_size=config.vocab_size,
    )


def _document_starts(mask: Tensor | None, length: int, past: StudentState | None) -> Tensor | None:
    """Where the rows begin (B, length), from a mask over these positions or over all so far; None without padding.

    A row begins where its mask turns to 1; there the student forgets the padding.
    """
    if mask is None or (past is not None and length == 1) or bool(mask.all()):
        return None
    seen = mask.bool()
    goes_on = past is not None and seen.shape[1] == length
    starts = seen & ~pad(seen[:, :-1], (1, 0), value=goes_on)
    if bool((starts.sum(1) > 1).any()) or (goes_on and bool(starts.any())):
        raise ValueError("attention_mask: a row has padding between its tokens; pad on the left")
    return starts[:, -length:]


def _require_an_end(mask: Tensor | None, *, wanted: bool) -> None:
    if wanted and mask is not None and not bool(mask[:, -1].all()):
        raise ValueError("attention_mask: rows are padded on the right, and cannot go on from there; pad on the left")
