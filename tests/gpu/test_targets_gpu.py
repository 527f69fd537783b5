"""The kernels that keep targets on a GPU: values at the sizes of tests and of a real vocabulary, and the dispatch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from delta_common.installed import has_triton
from teacher_cache.settings import PRESETS
from teacher_cache.targets.keep import keep_by_kernels, keep_by_torch, keep_targets
from tests.helpers import target_checks
from tests.helpers.layouts import layout, zipf_logits
from tests.helpers.target_checks import CHECKS, check_against_definition, check_samples, offsets

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
    pytest.mark.skipif(not has_triton(), reason="Triton is not installed"),
]

REAL, PADDED = 151_665, 151_936
"""Real tokens and rows of the LM head of a Qwen2.5 model."""

LAYOUTS = [*PRESETS.values(), (8, 0), (64, 0), (64, 50)]


def language_logits(rows: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Logits over the real part of a padded vocabulary, as the LM head's product leaves them; large in the padding."""
    random = torch.Generator("cuda").manual_seed(seed)
    ranks = torch.randperm(PADDED, generator=random, device="cuda")
    logits = torch.randn(rows, PADDED, generator=random, device="cuda", dtype=torch.float32).mul_(1.5)
    logits -= 1.5 * torch.log(ranks + 3.0)
    logits[:, REAL:] = 1e4
    return logits.to(dtype)[:, :REAL]


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_keep_what_the_definition_says(name: str) -> None:
    CHECKS[name]("cuda")


def test_tokens_are_drawn_as_often_as_they_should_be() -> None:
    target_checks.check_frequencies("cuda", positions=20_000)


@pytest.mark.parametrize(("top_k", "samples"), LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_real_vocabulary_is_kept_as_the_definition_says(top_k: int, samples: int, dtype: torch.dtype) -> None:
    rows = 400
    logits = language_logits(rows, dtype)
    check_against_definition(logits, layout(top_k, samples), offsets(rows, "cuda"))


@pytest.mark.parametrize(("top_k", "samples"), LAYOUTS)
def test_kernels_agree_with_their_twin(top_k: int, samples: int) -> None:
    """In float32, where few logits tie: the same top_k, log-mass within a step, samples on the same marks."""
    rows, wanted = 400, layout(top_k, samples)
    logits, uniform = language_logits(rows, torch.float32, seed=1), offsets(rows, "cuda")
    labels = torch.zeros(rows, dtype=torch.long, device="cuda")
    ours, twin = (keep(logits, labels, wanted, uniform) for keep in (keep_by_kernels, keep_by_torch))
    assert torch.equal(ours.values[:, :top_k], twin.values[:, :top_k])
    assert (ours.log_mass - twin.log_mass).abs().max() <= wanted.log_mass_step
    assert torch.equal(ours.label_logits, twin.label_logits)
    if samples:
        check_samples(logits, ours, wanted, uniform)
        check_samples(logits, twin, wanted, uniform)


def test_the_same_bits_whichever_positions_are_worked_on_together() -> None:
    target_checks.check_independence("cuda", rows=600, vocab=REAL)


def test_rows_behind_two_billion_logits_are_found() -> None:
    rows = 2**31 // PADDED + 40
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of GPU memory")
    logits = torch.zeros(rows, PADDED, dtype=torch.bfloat16, device="cuda")[:, :REAL]
    logits[-20:] = language_logits(20, torch.bfloat16, seed=2)
    wanted, uniform = layout(8, 50), offsets(rows, "cuda")
    labels = torch.arange(rows, device="cuda")
    whole = keep_by_kernels(logits, labels, wanted, uniform)
    last = keep_by_kernels(logits[-20:], labels[-20:], wanted, uniform[-20:])
    for name, column in vars(whole).items():
        assert torch.equal(column[-20:], getattr(last, name)), name


def test_a_gpu_takes_the_kernels_and_larger_layouts_take_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def spy(name: str, keep: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object) -> object:
            taken.append(name)
            return keep(*arguments)

        return called

    monkeypatch.setattr("teacher_cache.targets.keep.keep_by_kernels", spy("kernels", keep_by_kernels))
    monkeypatch.setattr("teacher_cache.targets.keep.keep_by_torch", spy("torch", keep_by_torch))
    logits = zipf_logits(5, 3000).to("cuda")
    labels, uniform = torch.zeros(5, dtype=torch.long, device="cuda"), offsets(5, "cuda")
    for top_k, samples in [(8, 50), (65, 0), (8, 257)]:
        kept = keep_targets(logits, labels, layout(top_k, samples), uniform)
        assert kept.values.shape == (5, top_k + samples)
    assert taken == ["kernels", "torch", "torch"]
