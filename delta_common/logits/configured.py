"""Which transform a model of transformers has behind its head: what its configuration says, where it does just that.

Families call the same thing otherwise, and call other things the same: Granite divides by `logits_scaling`,
HyperCLOVA X multiplies by it. So a configuration gives candidates, and the model's own forward pass decides.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from delta_common.logits.transform import LogitTransform

FACTORS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier", "logits_mup_width_multiplier")
"""Fields of configurations that multiply or divide logits, or the states that the head reads."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
INJECTED = 60.0
"""Logits from minus this to this are put in place of the head's output. They are larger than any soft cap, so a
transform of the logits shows whatever the weights are."""
ROUNDINGS = 8
"""Units in the last place by which a transform computed in another order may differ."""


class UnknownTransformError(ValueError):
    """A model changes its logits in a way that its configuration does not name."""


def injected_logits(rows: int, device: torch.device) -> Tensor:
    """(rows,) float32 from -`INJECTED` to `INJECTED`, exact in 16 bits too, so that a mere cast changes nothing."""
    return torch.linspace(-INJECTED, INJECTED, rows, device=device).bfloat16().float()


def transform_behind(config: object, given: Tensor, returned: Tensor) -> LogitTransform | None:
    """What makes `returned` of the head's logits `given`, of one shape; None for nothing at all.

    `config` is the language model's configuration. Raises `UnknownTransformError` if it is nothing that names.
    """
    if torch.equal(given.float(), returned.float()):
        return None
    close = ROUNDINGS * torch.finfo(returned.dtype).eps
    for transform in _candidates(config):
        if torch.allclose(transform.of(given.float()), returned.float(), rtol=close, atol=close):
            return transform
    raise UnknownTransformError


def factors(config: object) -> list[float]:
    """1, and each factor that a configuration names and its inverse, without repetition."""
    named = list(_numbers(config, FACTORS))
    return list(dict.fromkeys([1.0, *named, *(1 / factor for factor in named)]))


def without_transform(config: Mapping[str, object]) -> dict[str, object]:
    """A configuration as transformers writes it whose fields change no logits, as far as its family allows."""
    named = {name: value for name, value in config.items() if name in (*FACTORS, *CAPS) and value is not None}
    return {**config, **{name: 1.0 if name in FACTORS else None for name in named}}


def _candidates(config: object) -> Iterator[LogitTransform]:
    for cap in (None, *_numbers(config, CAPS)):
        for scale in factors(config):
            yield LogitTransform(scale=scale, cap=cap)


def _numbers(config: object, names: tuple[str, ...]) -> Iterator[float]:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
            yield float(value)
