"""Keeping with PyTorch against the naive twin, the definitions, and itself with other positions beside."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher_cache.format.manifest import TargetLayout
from teacher_cache.targets.keep import keep_by_torch
from teacher_cache.targets.keep_naive import keep_naively
from teacher_cache.targets.keep_torch import BLOCK, PowerScheme, in_blocks, steps_to_first_node, take_blocks
from tests.helpers import target_checks
from tests.helpers.layouts import layout, zipf_logits
from tests.helpers.target_checks import offsets

LAYOUTS = [
    layout(8, 50),
    layout(1, 16),
    layout(70, 0),
    layout(6, 30, nodes=9, temperatures=(0.9, 2.3)),
    layout(6, 30, nodes=2, proposal=((1.07, 0.4), (1.9, 0.6))),
]


@pytest.mark.parametrize("check", [c for name, c in target_checks.CHECKS.items() if name != "repeats"])
def test_what_is_kept_is_what_the_definitions_say(
    check: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_checks, "keep_by_kernels", keep_by_torch)
    check("cpu")


@pytest.mark.parametrize("wanted", LAYOUTS)
@pytest.mark.parametrize("vocab", [100, 1280, 5003])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_keep_what_the_naive_twin_keeps(wanted: TargetLayout, vocab: int, dtype: torch.dtype) -> None:
    """The top_k to the bit, log-mass within a step; other tokens only where sums round to the other side of a mark."""
    rows = 300
    logits, labels = zipf_logits(rows, vocab).to(dtype), torch.arange(rows) % vocab
    ours, twin = (keep(logits, labels, wanted, offsets(rows, "cpu")) for keep in (keep_by_torch, keep_naively))
    k = wanted.top_k
    assert torch.equal(ours.ids[:, :k], twin.ids[:, :k])
    assert torch.equal(ours.values[:, :k], twin.values[:, :k])
    assert torch.equal(ours.label_logits, twin.label_logits)
    assert (ours.log_mass - twin.log_mass).abs().max() <= wanted.log_mass_step * 1.01
    alike = (ours.log_mass == twin.log_mass).all(-1)
    assert alike.float().mean() > 0.9
    same = (ours.ids == twin.ids).all(-1)[alike]
    assert same.float().mean() > 0.95


@given(st.integers(1, 400), st.integers(0, 2**31), st.sampled_from([1, 2, 3]), st.sampled_from([130, 896, 3000]))
@settings(max_examples=25, deadline=None)
def test_the_same_bits_in_any_company_and_with_any_number_of_threads(
    rows: int, seed: int, threads: int, vocab: int
) -> None:
    wanted = layout(4, 20, proposal=((1.0, 0.5), (1.3, 0.5)))
    logits, labels, uniform = zipf_logits(rows, vocab, seed), torch.arange(rows) % vocab, offsets(rows, "cpu", seed)
    whole = keep_by_torch(logits, labels, wanted, uniform)
    cut = seed % rows
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = [
            keep_by_torch(logits[part], labels[part], wanted, uniform[part])
            for part in (slice(0, cut), slice(cut, None))
            if len(labels[part])
        ]
    finally:
        torch.set_num_threads(before)
    for name, column in vars(whole).items():
        assert torch.equal(column, torch.cat([getattr(part, name) for part in parts])), name


@pytest.mark.parametrize("wanted", LAYOUTS)
def test_powers_are_those_of_nodes_and_proposals(wanted: TargetLayout) -> None:
    scheme, rest = PowerScheme.of(wanted), -30 * torch.rand(3, 40, dtype=torch.float64)
    bases = [torch.exp2(rest * exponent) for exponent in scheme.exponents]
    powers = [power.clone() for power in scheme.powers(bases, torch.empty_like(rest))]
    assert len(powers) == scheme.count
    for node, power in zip(wanted.node_temperatures, powers, strict=False):
        assert torch.allclose(power, torch.exp(rest / node), rtol=1e-12)
    for place, (temperature, _) in zip(scheme.places, wanted.proposal, strict=True):
        assert torch.allclose(powers[place], torch.exp(rest / temperature), rtol=1e-12)
    assert len(scheme.places) == len(wanted.proposal)


@pytest.mark.parametrize(
    ("betas", "steps"),
    [([0.5, 0.625], 4), ([0.25, 0.5], 1), ([0.5, 0.6], 5), ([0.9, 1.0], 0), ([0.5, 0.68], 0), ([0.5, 0.9], 0)],
)
def test_a_first_node_of_few_whole_steps_is_told(betas: list[float], steps: int) -> None:
    assert steps_to_first_node(betas) == steps


def test_blocks_are_the_columns_and_their_filling() -> None:
    columns = torch.arange(2 * 300.0).view(2, 300)
    blocks = in_blocks(columns, -1.0)
    assert blocks.shape == (2, 3, BLOCK)
    assert torch.equal(blocks.flatten(1)[:, :300], columns)
    assert (blocks.flatten(1)[:, 300:] == -1.0).all()
    assert torch.equal(take_blocks(blocks, torch.tensor([1]), torch.tensor([2]))[0], blocks[1, 2])
