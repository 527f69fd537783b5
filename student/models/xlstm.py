"""The xLSTM student: a trainable block stack between the teacher's frozen embedding and LM head.

The only file that knows the `xlstm` package. Its sLSTM cells run the `vanilla` backend on every device: it needs no
compiler, and its parameters have one layout everywhere, so a checkpoint moves between CPU and GPU.
"""

from dataclasses import dataclass
from typing import Any

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

from student.frozen_weights import FrozenHead, FrozenWeights
from student.model_settings import StudentShape

RecurrentState = dict[str, Any]
"""What `step` carries from token to token: the recurrent and convolution state of each block."""


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters as papers count them: embedding and LM head are two matrices, also where they share memory."""

    trainable: int
    total: int


class XLSTMStudent(nn.Module):
    """Tokens to hidden states; the LM head is applied by whoever needs logits, in chunks.

    The frozen matrices are non-persistent buffers, not parameters: optimizers, ZeRO and checkpoints never see them,
    and a tied pair stays one tensor in memory. So `parameters()` and `state_dict()` are what is trained.
    """

    embedding: Tensor
    lm_head: Tensor | None
    lm_head_bias: Tensor | None

    def __init__(self, stack: xLSTMBlockStack, frozen: FrozenWeights, *, context_length: int) -> None:
        super().__init__()
        self.stack = stack
        self.context_length = context_length
        self.vocab_size = frozen.vocab_size
        self.register_buffer("embedding", frozen.embedding, persistent=False)
        self.register_buffer("lm_head", frozen.lm_head, persistent=False)
        self.register_buffer("lm_head_bias", frozen.lm_head_bias, persistent=False)

    @property
    def head(self) -> FrozenHead:
        """The LM head over real tokens, views of (V, d) and (V,)."""
        weight = self.embedding if self.lm_head is None else self.lm_head
        bias = None if self.lm_head_bias is None else self.lm_head_bias[: self.vocab_size]
        return FrozenHead(weight[: self.vocab_size], bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, T, d) after the last norm, from tokens (B, T); T is at most `context_length`."""
        if tokens.shape[1] > self.context_length:
            raise ValueError(f"{tokens.shape[1]} tokens in a row, built for {self.context_length}")
        hidden_states: Tensor = self.stack(functional.embedding(tokens, self.embedding))
        return hidden_states

    def step(self, tokens: Tensor, state: RecurrentState | None = None) -> tuple[Tensor, RecurrentState]:
        """One token a row, (B, 1), through the recurrent form: hidden states (B, 1, d) and the next state.

        Equal to `forward` over the whole row up to rounding. The state passed in is used up.
        """
        hidden_states, state = self.stack.step(functional.embedding(tokens, self.embedding), state)
        return hidden_states, state

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Logits over real tokens, (..., V), of hidden states (..., d)."""
        return functional.linear(hidden_states, self.head.weight, self.head.bias)

    def parameter_counts(self) -> ParameterCounts:
        trainable = sum(parameter.numel() for parameter in self.parameters())
        bias = 0 if self.lm_head_bias is None else self.lm_head_bias.numel()
        return ParameterCounts(trainable, trainable + 2 * self.embedding.numel() + bias)


def build_student(shape: StudentShape, frozen: FrozenWeights, *, context_length: int, seed: int) -> XLSTMStudent:
    """A student with initial parameters that depend on `shape` and `seed` alone; global random state is kept.

    Under `torch.device("meta")` nothing is allocated, which is enough to count parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stack = xLSTMBlockStack(_stack_config(shape, context_length))
    return XLSTMStudent(stack, frozen, context_length=context_length)


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
