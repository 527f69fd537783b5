"""A digest of weights follows every name, type, shape and byte."""

import torch

from delta_common.weights import weights_sha256


def test_every_part_of_a_tensor_counts_and_the_order_does_not() -> None:
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(6.0).view(2, 3)}
    assert weights_sha256(base) == weights_sha256(same)
    others = [
        base | {"a": torch.arange(6.0).view(3, 2)},
        base | {"a": torch.arange(6.0).view(2, 3).double()},
        base | {"a": torch.arange(1.0, 7.0).view(2, 3)},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({weights_sha256(base), *map(weights_sha256, others)}) == 6


def test_a_view_has_the_digest_of_its_numbers() -> None:
    whole = torch.arange(12.0).view(3, 4)
    assert weights_sha256({"a": whole.T}) == weights_sha256({"a": whole.T.contiguous()})
