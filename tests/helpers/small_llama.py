"""A small student of transformers, and one step of it by the naive twin of the loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cached_distillation.batch import CachedBatch
from delta_common.logits.transform import LogitTransform
from student.data.batch import GlobalCounts
from student.loss.naive import distillation_loss_sums, total_loss
from student.loss.schedule import Coefficients
from student.model.frozen import FrozenHead

COEFFICIENTS = Coefficients(alpha=0.7, temperature=1.5, beta=0.0)


def small_llama(vocab_size: int = 64, **config: Any) -> LlamaForCausalLM:
    """Seeded random weights, two layers of 32 channels."""
    torch.manual_seed(0)
    fields = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        **config,
    }
    return LlamaForCausalLM(LlamaConfig(**fields))


def naive_step(
    model: nn.Module, head: nn.Linear, batches: Sequence[CachedBatch], transform: LogitTransform | None = None
) -> tuple[float, dict[str, Tensor]]:
    """Loss of a step and its gradients by name, from all logits at once and by autograd."""
    vocab_size = batches[0].stored.manifest.vocab_size
    bias = None if head.bias is None else head.bias[:vocab_size]
    frozen = FrozenHead(head.weight[:vocab_size], bias, transform=transform)
    counts = GlobalCounts(sum(int(batch.loss_mask.sum()) for batch in batches), sum(map(len, batches)))
    total = torch.zeros(())
    for batch in batches:
        hidden = model(**batch.model_inputs, output_hidden_states=True).hidden_states[-1]
        sums = distillation_loss_sums(hidden, frozen, batch.widened, temperature=COEFFICIENTS.temperature)
        total = total + total_loss(sums, COEFFICIENTS, counts)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(total, list(trained.values()))
    return float(total.detach()), dict(zip(trained, gradients, strict=True))


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Of the parameters that have one, by name."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Equal names, and gradients to the tolerance of the largest of them."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= tolerance * largest, name
