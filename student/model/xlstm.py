"""The xLSTM student: a trainable block stack between the teacher's frozen embedding and LM head.

The stack holds xlstm's modules, and parameters have xlstm's names. `student.model.blocks` computes with them, or with
`naive` kernels their own `forward`. sLSTM cells have the `vanilla` backend on every device: it needs no compiler, and
the layout of its parameters is the same everywhere, so a checkpoint moves between CPU and GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMBlockStack,
    xLSTMBlockStackConfig,
)

from student.model.blocks import RecurrentState, run_stack
from student.model.frozen import FrozenHead, FrozenWeights, head_over
from student.model.recorded import can_compile
from student.model.shape import StudentShape
from student.model.state import forget_rows

PREFILL_LENGTH = 512
"""Tokens of a prompt per chunk: enough to be fast, few enough to need little memory."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters as papers count them: embedding and LM head count as two matrices even where they are one."""

    trainable: int
    total: int


class XLSTMStudent(nn.Module):
    """Tokens to hidden states; callers apply the LM head themselves, in chunks.

    The frozen matrices are buffers, not parameters: optimizers, ZeRO and checkpoints never see them, and a tied pair
    stays one tensor in memory. So `parameters()` and, unless `keep_frozen`, `state_dict()` are what is trained.
    """

    embedding: Tensor
    lm_head: Tensor | None
    lm_head_bias: Tensor | None
    gradient_checkpointing = False
    """Whether training computes blocks again in the backward pass; transformers sets both by these names."""
    trains_compiled: bool = False
    """Whether passes with gradients run compiled, for who trains with one shape of batch; see `can_compile`."""
    _gradient_checkpointing_func: Callable[..., Any] | None = None

    def __init__(
        self,
        stack: xLSTMBlockStack,
        frozen: FrozenWeights,
        *,
        kernels: Literal["auto", "naive"] = "auto",
        keep_frozen: bool = False,
    ) -> None:
        super().__init__()
        self.stack = stack
        self.kernels = kernels
        self.vocab_size = frozen.vocab_size
        self.embedding_scale, self.logit_transform = frozen.embedding_scale, frozen.logit_transform
        self.register_buffer("embedding", frozen.embedding, persistent=keep_frozen)
        self.register_buffer("lm_head", frozen.lm_head, persistent=keep_frozen)
        self.register_buffer("lm_head_bias", frozen.lm_head_bias, persistent=keep_frozen)

    @property
    def head(self) -> FrozenHead:
        """The LM head, views of the frozen matrices where they have the rows."""
        weight = self.embedding if self.lm_head is None else self.lm_head
        return head_over(weight, self.lm_head_bias, self.vocab_size, self.logit_transform)

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first block reads (B, T, d) of tokens (B, T): what the teacher's first layer does."""
        embedded = functional.embedding(tokens, self.embedding)
        return embedded if self.embedding_scale is None else embedded * self.embedding_scale

    def forward(self, tokens: Tensor, document_start: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, d) after the last norm, from tokens (B, T).

        Where `document_start` (B, T) is true, the student forgets what came before: each document has the hidden states
        that it would have in a row of its own.
        """
        embedded = self.embed(tokens)
        if self.kernels == "naive":
            return _one_by_one(self.stack, embedded, document_start)
        checkpoint = self._gradient_checkpointing_func if self.gradient_checkpointing and self.training else None
        compiled = self.trains_compiled and torch.is_grad_enabled()
        if checkpoint is not None or compiled:
            # torch's older way to checkpoint gives gradients only where an input asks for one, and the first block
            # would be compiled apart from the others.
            embedded = embedded.detach().requires_grad_()
        hidden_states, _ = run_stack(
            self.stack, embedded, document_start=document_start, checkpoint=checkpoint, compiled=compiled
        )
        return hidden_states

    def prefill(
        self, tokens: Tensor, state: RecurrentState | None = None, document_start: Tensor | None = None
    ) -> tuple[Tensor, RecurrentState]:
        """Hidden states (B, T, d) of tokens (B, T) that follow `state`, and the state after them, for `step`.

        Equal to `forward` over the whole row up to rounding; besides the result, memory does not grow with T. Where
        `document_start` (B, T) is true, the student forgets what came before, `state` included. The state passed in
        must not be used again.
        """
        state = {} if state is None else state
        parts = []
        for begin in range(0, tokens.shape[1], PREFILL_LENGTH):
            span = slice(begin, begin + PREFILL_LENGTH)
            starts = None if document_start is None else document_start[:, span]
            hidden_states, state = self._prefill_part(tokens[:, span], state, starts)
            parts.append(hidden_states)
        return torch.cat(parts, dim=1), state

    def step(self, tokens: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        """One token per row, (B, 1), by the recurrent form: hidden states (B, 1, d) and the next state.

        Equal to `forward` over the whole row up to rounding. The state passed in must not be used again.
        """
        # The first token's memory is empty here; xlstm's step would start from one with m = 0, not quite the same, and
        # would round mLSTM's memory to 16 bits at every token of a 16-bit student, which adds up.
        if self.kernels != "naive" and (not state or self.embedding.dtype.itemsize < 4):
            return self.prefill(tokens, state)
        hidden_states, state = self.stack.step(self.embed(tokens), state)
        return hidden_states, state

    def _prefill_part(
        self, tokens: Tensor, state: RecurrentState, starts: Tensor | None
    ) -> tuple[Tensor, RecurrentState]:
        if self.kernels != "naive":
            return run_stack(self.stack, self.embed(tokens), state, starts)
        steps = []
        for position, token in enumerate(torch.split(tokens, 1, dim=1)):
            state = state if starts is None else forget_rows(state, starts[:, position])
            hidden_states, state = self.step(token, state)
            steps.append(hidden_states)
        return torch.cat(steps, dim=1), state

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits over real tokens, (..., V), of hidden states (..., d)."""
        return self.head.raw_logits(hidden_states)

    @property
    def can_compile(self) -> bool:
        """Whether what surrounds the recurrences may run compiled."""
        return self.kernels == "auto" and can_compile(self)

    def parameter_counts(self) -> ParameterCounts:
        trainable = sum(parameter.numel() for parameter in self.parameters())
        bias = 0 if self.lm_head_bias is None else self.lm_head_bias.numel()
        return ParameterCounts(trainable, trainable + 2 * self.embedding.numel() + bias)


def build_student(
    shape: StudentShape,
    frozen: FrozenWeights,
    *,
    context_length: int,
    seed: int,
    kernels: Literal["auto", "naive"] = "auto",
    keep_frozen: bool = False,
) -> XLSTMStudent:
    """A student with initial parameters that depend on `shape` and `seed` alone; global random state is kept.

    `context_length` is the most tokens in a row with naive kernels; the others have no such limit. With `keep_frozen`
    the frozen matrices are in `state_dict()` too.

    Under `torch.device("meta")` nothing is allocated, which is enough to count parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # xlstm's cells keep a mask of context_length², which only their own forward reads.
        stack = xLSTMBlockStack(_stack_config(shape, context_length if kernels == "naive" else 1))
    return XLSTMStudent(stack, frozen, kernels=kernels, keep_frozen=keep_frozen)


def _one_by_one(stack: xLSTMBlockStack, x: Tensor, document_start: Tensor | None) -> Tensor:
    """Inputs (B, T, d) through xlstm's own modules, every document by itself."""
    if x.shape[1] > stack.config.context_length:
        raise ValueError(f"{x.shape[1]} tokens in a row, built for {stack.config.context_length}")
    if document_start is None:
        hidden_states: Tensor = stack(x)
        return hidden_states
    rows = []
    for row, starts in zip(torch.split(x, 1), document_start, strict=True):
        first = starts[1:].nonzero().flatten() + 1
        rows.append(torch.cat([stack(document) for document in row.tensor_split(first.cpu(), dim=1)], dim=1))
    return torch.cat(rows)


def _stack_config(shape: StudentShape, context_length: int) -> xLSTMBlockStackConfig:
    mlstm = mLSTMLayerConfig(
        conv1d_kernel_size=shape.conv_kernel,
        qkv_proj_blocksize=shape.qkv_block_size,
        num_heads=shape.heads,
        proj_factor=shape.mlstm_proj_factor,
    )
    slstm = sLSTMLayerConfig(
        backend="vanilla",
        conv1d_kernel_size=shape.conv_kernel,
        num_heads=shape.heads,
        bias_init="powerlaw_blockdependent",
    )
    feedforward = FeedForwardConfig(proj_factor=shape.slstm_ffn_factor, act_fn="gelu")
    return xLSTMBlockStackConfig(
        mlstm_block=mLSTMBlockConfig(mlstm=mlstm),
        slstm_block=sLSTMBlockConfig(slstm=slstm, feedforward=feedforward),
        context_length=context_length,
        num_blocks=shape.blocks,
        embedding_dim=shape.hidden_size,
        slstm_at=list(shape.slstm_at),
        add_post_blocks_norm=True,
        bias=False,
        dropout=0.0,
    )
