"""A number that is not finite stops the build, which names where it is and what to do."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from delta_common.errors import UserError
from teacher_cache.build.finite import require_finite
from teacher_cache.build.job import build
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import BuildSettings
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import save_family

MANIFEST_ROWS = range(8, 12)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    made = make_synthetic_cache(
        tmp_path_factory.mktemp("finite") / "cache", rows=4, seq_len=6, vocab_size=64, top_k=4, rows_per_shard=4
    )
    return open_cache(made).manifest


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["logits/log_mass", "hidden/mean_scales", "hidden/mean"])
def test_every_array_of_floats_is_looked_at(manifest, name: str, number: float) -> None:  # type: ignore[no-untyped-def]
    numbers = np.zeros((4, 6, 3), np.float32)
    require_finite(manifest, name, numbers, MANIFEST_ROWS)
    numbers[2, 5, 1] = number
    with pytest.raises(UserError, match=r"is not finite at row 10, position 5.*set teacher.dtype to"):
        require_finite(manifest, name, numbers, MANIFEST_ROWS)


def test_an_unused_place_of_the_values_is_no_fault(manifest) -> None:  # type: ignore[no-untyped-def]
    values = np.full((4, 6, 3), -np.inf, np.float16)
    require_finite(manifest, "logits/values", values, MANIFEST_ROWS)
    values[0, 0, 0] = np.inf
    with pytest.raises(UserError, match=r"above 65,504 at row 8, position 0; set targets.value_dtype to float32"):
        require_finite(manifest, "logits/values", values, MANIFEST_ROWS)
    values[0, 0, 0] = np.nan
    with pytest.raises(UserError, match="logits/values is not finite at row 8, position 0"):
        require_finite(manifest, "logits/values", values, MANIFEST_ROWS)


def test_bfloat16_is_looked_at_through_its_bits(manifest) -> None:  # type: ignore[no-untyped-def]
    lossless = manifest.model_copy(update={"teacher": manifest.teacher.model_copy(update={"dtype": "bfloat16"})})
    bits = torch.ones(4, 6, 3, dtype=torch.bfloat16)
    require_finite(lossless, "exact/hidden", bits.view(torch.uint16).numpy(), MANIFEST_ROWS)
    bits[3, 1, 2] = torch.nan
    with pytest.raises(UserError, match="exact/hidden is not finite at row 11, position 1"):
        require_finite(lossless, "exact/hidden", bits.view(torch.uint16).numpy(), MANIFEST_ROWS)


@pytest.mark.parametrize("mean", ["lossless", "int8", "none"])
def test_a_teacher_that_overflows_on_one_letter_stops_the_build(mean: str, tmp_path: Path) -> None:
    """In float16: finite on the tokens tried when it is loaded, not finite where the text has a `k`."""
    teacher, corpus = save_family("Llama", tmp_path / "teacher"), tmp_path / "texts"
    corpus.mkdir()
    (corpus / "a.txt").write_text("plain words " * 20 + "the kiosk is long " * 10)
    weights = load_file(teacher / "model.safetensors")
    weights["model.embed_tokens.weight"][_letter("k", teacher)] *= 1e6
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "teacher": {"model": str(teacher), "dtype": "float16"},
        "corpus": {"source": str(corpus)},
        "rows": {"seq_len": 32, "count": 12},
        "hidden": {"mean": mean},
        "compute": {"batch_size": 4, "rows_per_shard": 4},
    }
    with pytest.raises(
        UserError, match=r"teacher.dtype float16: .* not finite at row \d+, position \d+.*bfloat16 or f"
    ):
        build(BuildSettings.model_validate(settings), tmp_path / "cache")
    wide = yaml.safe_load(yaml.safe_dump(settings)) | {"teacher": {"model": str(teacher), "dtype": "float32"}}
    assert build(BuildSettings.model_validate(wide), tmp_path / "wide").shards_built == 3


def test_logits_too_large_for_float16_are_told_from_a_broken_teacher(tmp_path: Path) -> None:
    teacher = save_family("Llama", tmp_path / "teacher", tie_word_embeddings=False)
    weights = load_file(teacher / "model.safetensors")
    weights["lm_head.weight"] *= 3e4
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    settings = BuildSettings.model_validate(
        {
            "teacher": {"model": str(teacher), "dtype": "float32"},
            "corpus": {"source": str(write_text_corpus(tmp_path))},
            "rows": {"seq_len": 16, "count": 4},
            "targets": {"top_k": 4, "samples": 4, "value_dtype": "float16"},
        }
    )
    with pytest.raises(UserError, match=r"set targets.value_dtype to float32"):
        build(settings, tmp_path / "cache")


def _letter(letter: str, teacher: Path) -> int:
    from transformers import AutoTokenizer

    (token,) = AutoTokenizer.from_pretrained(teacher)(letter, add_special_tokens=False)["input_ids"]
    return int(token)
