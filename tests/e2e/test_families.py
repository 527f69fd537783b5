"""Caches of many families of teachers say what transformers' own forward pass says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from teacher_cache import Cache, open_cache
from teacher_cache.build.job import build
from teacher_cache.settings import BuildSettings, TeacherSettings
from teacher_cache.teacher.load import load_teacher
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import FAMILIES, attention_of, save_family

ROUNDING = 5e-5
"""Largest difference relative to the largest number compared: float32, one kernel over other shapes."""
REPORTS_NO_EMBEDDING = {"Mamba", "Mamba2"}
"""Their reported states begin with the first layer's, and end with the last layer's before and after the norm."""
KEEPS_DOCUMENTS_APART = {
    "Llama",
    "Qwen2",
    "Qwen3",
    "Mistral",
    "Gemma3Text",
    "Mixtral",
    "Olmo2",
    "SmolLM3",
    "Starcoder2",
}


def settings(teacher: Path, corpus: Path, name: str, **sections: Any) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "teacher": {"model": str(teacher), "dtype": "float32", "attention": attention_of(name)},
            "corpus": {"source": str(corpus)},
            "rows": {"seq_len": 24, "count": 6},
            "targets": {"top_k": 4, "samples": 12, "value_dtype": "float32"},
            "hidden": {"mean": "lossless"},
            "compute": {"batch_size": 4, "rows_per_shard": 4},
        }
        | sections
    )


def tokens_of(cache: Cache) -> torch.Tensor:
    return torch.from_numpy(cache.rows(range(len(cache))).tokens.astype(np.int64))[:, :-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_says_what_the_model_says(name: str, tmp_path: Path) -> None:
    teacher, corpus = save_family(name, tmp_path / "teacher"), write_text_corpus(tmp_path)
    build(settings(teacher, corpus, name), tmp_path / "cache")
    exact = {"targets": {"mode": "exact"}, "hidden": {"mean": "none"}}
    build(settings(teacher, corpus, name, **exact), tmp_path / "exact")
    cache, whole = open_cache(tmp_path / "cache"), open_cache(tmp_path / "exact")
    rows, mask = cache.rows(range(len(cache))), torch.from_numpy(cache.rows(range(len(cache))).loss_mask)
    model = AutoModelForCausalLM.from_pretrained(
        teacher, dtype=torch.float32, attn_implementation=attention_of(name)
    ).eval()
    with torch.no_grad():
        found = model(input_ids=tokens_of(cache), use_cache=False, output_hidden_states=True)
    logits = found.logits[..., : cache.manifest.vocab_size].double()
    relative = logits - logits.amax(-1, keepdim=True)
    scale = float(logits.abs().max())

    kept, top = torch.from_numpy(rows.values)[..., :4].double(), logits.topk(4).values
    assert float((kept - top).abs()[mask].max()) <= ROUNDING * scale
    rounding = cache.manifest.targets.log_mass_step / 2
    log_z = torch.from_numpy(cache.targets(range(len(cache)), temperature=1.0).log_partition).double()
    assert float((log_z - relative.logsumexp(-1)).abs()[mask].max()) <= ROUNDING * scale + rounding
    reported = (
        found.hidden_states[1:]
        if name not in REPORTS_NO_EMBEDDING
        else found.hidden_states[:2] + found.hidden_states[-1:]
    )
    states = torch.stack([state.double() for state in reported]).mean(0)
    mean = torch.from_numpy(rows.hidden_mean).double()
    assert float((mean - states).abs()[mask].max()) <= ROUNDING * float(states.abs().max())
    final = torch.from_numpy(whole.rows(range(len(whole))).final_hidden).double()
    last = found.hidden_states[-1].double()
    assert float((final - last).abs()[mask].max()) <= ROUNDING * float(last.abs().max())


@pytest.mark.parametrize("name", sorted(KEEPS_DOCUMENTS_APART))
def test_documents_in_a_row_are_as_each_alone(name: str, tmp_path: Path) -> None:
    teacher, corpus = save_family(name, tmp_path / "teacher"), write_text_corpus(tmp_path, words=4)
    rows = {"seq_len": 60, "count": 6, "context": "document"}
    build(settings(teacher, corpus, name, rows=rows), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    read = cache.rows(range(len(cache)))
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    compared = 0
    for row, tokens in enumerate(tokens_of(cache)):
        starts = np.flatnonzero(read.document_start[row]).tolist()
        for begin, end in zip(starts, [*starts[1:], len(tokens)][: len(starts)], strict=True):
            with torch.no_grad():
                alone = model(input_ids=tokens[None, begin:end], use_cache=False).logits[0]
            counted = torch.from_numpy(read.loss_mask[row, begin:end])
            ids = torch.from_numpy(read.ids[row, begin:end, :4].astype(np.int64))
            kept = torch.from_numpy(read.values[row, begin:end, :4])
            worst = (alone.gather(-1, ids) - kept).abs()[counted]
            assert not worst.numel() or float(worst.max()) <= ROUNDING * float(alone.abs().max())
            compared += int(counted.sum()) if begin else 0
    assert compared > 50, "hardly a second document in a row"


@pytest.mark.parametrize(
    ("name", "scale"),
    [("Gemma", 32**0.5), ("Granite", 12.0), ("Llama", None), ("GPT2", None), ("Bloom", None)],
)
def test_what_the_first_layer_reads_is_known(name: str, scale: float | None, tmp_path: Path) -> None:
    settings = TeacherSettings(model=str(save_family(name, tmp_path)), dtype="float32", attention=attention_of(name))
    teacher = load_teacher(settings)
    assert teacher.identity().embedding_scale == (None if scale is None else pytest.approx(scale, rel=1e-3))
    assert teacher.embeds_plainly == (name not in ("GPT2", "Bloom"))
