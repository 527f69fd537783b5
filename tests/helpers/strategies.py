"""Hypothesis strategies that several tests share."""

import torch
from hypothesis import strategies as st
from torch import Tensor


@st.composite
def logit_rows(draw: st.DrawFn) -> Tensor:
    """Rows of logits: normal, peaked, uniform, with ties and with -inf, as models and masks make them."""
    vocab = draw(st.integers(2, 300))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randn(4, vocab, generator=random) * draw(st.sampled_from([0.0, 0.5, 3.0, 12.0]))
    if draw(st.booleans()):
        logits = logits.round()
    if draw(st.booleans()) and vocab > 3:
        logits[:, vocab // 2] = -torch.inf
    if draw(st.booleans()):
        logits[:, vocab // 3] += 80.0
    return logits.to(draw(st.sampled_from([torch.float32, torch.bfloat16])))
