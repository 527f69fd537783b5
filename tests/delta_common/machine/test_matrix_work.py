"""Which cards have a known peak, and what share of it a model's products come to."""

import pytest
import torch
from torch import nn

from delta_common.machine.matrix_work import (
    MatrixWork,
    Operations,
    has_experts,
    matrix_peak,
    product_parameters,
    whole_size,
)

GPU = torch.device("cuda")


def call_the_card(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)


@pytest.mark.parametrize(
    ("name", "bfloat16", "float16"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 989e12),
        ("NVIDIA H100 PCIe", 756e12, 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 312e12),
        ("A100-SXM4-40GB", 312e12, 312e12),
        ("NVIDIA GeForce RTX 4090", 165e12, 165e12),
        ("Tesla V100-PCIE-16GB", None, 112e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None, None),
        ("A card of tomorrow", None, None),
    ],
)
def test_a_peak_is_of_a_whole_card_by_its_name(
    name: str, bfloat16: float | None, float16: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_the_card(name, monkeypatch)
    assert matrix_peak(GPU, torch.bfloat16) == bfloat16
    assert matrix_peak(GPU, torch.float16) == float16
    assert matrix_peak(GPU, torch.float32) is None


def test_a_cpu_has_no_peak() -> None:
    assert matrix_peak(torch.device("cpu"), torch.bfloat16) is None


def test_the_share_is_of_all_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    call_the_card("NVIDIA H100 80GB HBM3", monkeypatch)
    operations = Operations(position=6e8, counted=4e8)
    one, two = (MatrixWork.of(operations, GPU, torch.bfloat16, cards) for cards in (1, 2))
    assert one is not None
    assert two is not None
    assert one.mfu(16_384, 16_384, 0.1) == pytest.approx(1e9 * 163_840 / 989e12)
    assert two.mfu(16_384, 16_384, 0.1) == pytest.approx(one.mfu(16_384, 16_384, 0.2))
    assert one.mfu(16_384, 0, 0.1) == pytest.approx(0.6 * one.mfu(16_384, 16_384, 0.1))


def test_what_is_not_known_has_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    call_the_card("NVIDIA H100 80GB HBM3", monkeypatch)
    assert MatrixWork.of(None, GPU, torch.bfloat16) is None
    assert MatrixWork.of(Operations(1, 1), GPU, torch.float32) is None


def test_an_embedding_is_no_product_though_a_head_shares_it_nor_is_a_bias() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "layer": nn.Linear(4, 3), "head": nn.Linear(4, 10)})
    model["head"].weight = model["embedding"].weight
    assert [name for name, _ in product_parameters(model)] == ["layer.weight"]


def test_experts_are_noticed_by_their_name_or_their_kind() -> None:
    kinds = [type(name, (nn.Linear,), {}) for name in ("MixtralSparseMoeBlock", "GraniteMoeParallelExperts")]
    assert has_experts(nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2)])}))
    assert all(has_experts(nn.Sequential(kind(2, 2))) for kind in kinds)
    assert not has_experts(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_a_split_parameter_counts_whole() -> None:
    parameter = nn.Parameter(torch.empty(0))
    assert whole_size(parameter) == 0
    parameter.ds_shape = torch.Size([3, 5])
    assert whole_size(parameter) == 15
