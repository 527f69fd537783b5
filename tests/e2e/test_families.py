"""Caches of many families of teachers say what transformers' own forward pass says; docs/teachers.md lists them."""

import functools
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from delta_common.errors import UserError
from student.run.student import frozen_weights_of
from teacher_cache import Cache, open_cache
from teacher_cache.build.job import build
from teacher_cache.read.decode import CachedRows
from teacher_cache.settings import BuildSettings, TeacherSettings
from teacher_cache.teacher.documents_apart import require_documents_apart
from teacher_cache.teacher.load import load_teacher
from teacher_cache.teacher.model import Teacher
from teacher_cache.teacher.parallel.fit import teacher_size
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import FAMILIES, REFUSED, attention_of, save_family

ROUNDING = 1e-5
"""Largest difference, relative to the largest number compared: float32, one kernel over other shapes."""
TEMPERATURES = (1.0, 1.3, 1.7, 2.0)
REPORTS_NO_EMBEDDING = {"Mamba", "Mamba2", "FalconMamba", "Rwkv"}
"""Their reported states begin with the first layer's, and end with the last layer's before and after the norm."""
PAGE = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text(encoding="utf-8")
COLUMNS = 6
DENSE = {"targets": {"top_k": 257, "samples": 0, "value_dtype": "float32"}, "hidden": {"preset": "lossless"}}
"""Every logit of the tokenizer's tokens, so that nothing is estimated."""
EXACT = {"targets": {"mode": "exact"}, "hidden": {"preset": "none"}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short documents, several to a row."""
    return write_text_corpus(tmp_path_factory.mktemp("corpus"), documents=20, words=4)


Saved = Callable[[str], Path]
"""The folder of a family's model, by name."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("families")
    return functools.cache(lambda name: save_family(name, folder / name))


@functools.cache
def table() -> dict[str, list[str]]:
    """The page's lines of families by name: what is behind the head, what is read, documents, attention, plan."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:2] == "| "]
    return {line[0]: line[1:] for line in lines if len(line) == COLUMNS and line[0] != "family"}


def settings(teacher: Path, corpus: Path, name: str, **sections: Any) -> BuildSettings:
    return BuildSettings.model_validate(
        {
            "teacher": {"model": str(teacher), "dtype": "float32", "attention": attention_of(name)},
            "corpus": {"source": str(corpus)},
            "rows": {"seq_len": 24, "count": 6},
            "compute": {"batch_size": 4, "rows_per_shard": 8},
        }
        | sections
    )


def loaded(teacher: Path, name: str) -> PreTrainedModel:
    """The model as transformers loads it."""
    attention = attention_of(name)
    return AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, attn_implementation=attention).eval()


def rows_of(cache: Cache) -> tuple[CachedRows, Tensor, Tensor]:
    """All rows, their tokens without the last (B, T), and which positions count (B, T)."""
    rows = cache.rows(range(len(cache)))
    return rows, torch.from_numpy(rows.tokens.astype(np.int64))[:, :-1], torch.from_numpy(rows.loss_mask)


def assert_close(found: Tensor, expected: Tensor, where: Tensor) -> None:
    found, expected = found.double()[where], expected.double()[where]
    assert float((found - expected).abs().max()) <= ROUNDING * float(expected.abs().max())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_says_what_the_model_says(name: str, saved: Saved, corpus: Path, tmp_path: Path) -> None:
    """Packed rows with documents' borders in them: all logits in order, log Z at every T, the layers' mean."""
    teacher = saved(name)
    build(settings(teacher, corpus, name, **DENSE), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    rows, tokens, mask = rows_of(cache)
    assert rows.document_start[:, 1:].any()
    with torch.no_grad():
        found = loaded(teacher, name)(input_ids=tokens, use_cache=False, output_hidden_states=True)
    logits = found.logits[..., : cache.manifest.vocab_size].double()
    assert_close(torch.from_numpy(rows.values), logits.sort(-1, descending=True).values, mask)
    for temperature in TEMPERATURES:
        log_z = torch.from_numpy(cache.targets(range(len(cache)), temperature=temperature).log_partition)
        relative = (logits - logits.amax(-1, keepdim=True)) / temperature
        assert_close(log_z, relative.logsumexp(-1), mask)
    reported = found.hidden_states[1:]
    if name in REPORTS_NO_EMBEDDING:
        reported = (*found.hidden_states[:2], found.hidden_states[-1])
    assert_close(torch.from_numpy(rows.hidden_mean), torch.stack([s.double() for s in reported]).mean(0), mask)


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_mode_gives_the_models_logits_back(name: str, saved: Saved, corpus: Path, tmp_path: Path) -> None:
    """A row a document, padded behind it: the final states, and logits through the cache's own head."""
    teacher = saved(name)
    rows_of_documents = {"rows": {"seq_len": 24, "count": 6, "mode": "document"}}
    build(settings(teacher, corpus, name, **EXACT, **rows_of_documents), tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    rows, tokens, mask = rows_of(cache)
    assert not mask.all()
    with torch.no_grad():
        found = loaded(teacher, name)(input_ids=tokens, use_cache=False, output_hidden_states=True)
    final = torch.from_numpy(rows.final_hidden)
    assert_close(final, found.hidden_states[-1], mask)
    assert_close(frozen_weights_of(cache).head.logits(final), found.logits[..., : cache.manifest.vocab_size], mask)


def require_apart(teacher: Teacher, name: str, folder: Path) -> None:
    wanted = TeacherSettings(model=str(folder), dtype="float32", attention=attention_of(name))
    require_documents_apart(teacher, wanted, 4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_page_says_what_a_family_does(name: str, saved: Saved) -> None:
    folder = saved(name)
    behind, read, documents, attention, cut = table()[name]
    teacher = load_teacher(TeacherSettings(model=str(folder), dtype="float32", attention=attention_of(name)))
    identity = teacher.identity()
    transform, scale = identity.logit_transform, identity.embedding_scale
    assert behind == ("–" if transform is None else "factor" if transform.cap is None else "soft cap")
    assert read == ("more" if not teacher.embeds_plainly else "embedding" if scale is None else "embedding × factor")
    assert attention == attention_of(name)
    config = AutoConfig.from_pretrained(folder)
    assert cut == ("matrices" if teacher_size(config, torch.float32).has_plan else "layers")
    if documents == "yes":
        require_apart(teacher, name, folder)
        return
    assert documents == "refused"
    with pytest.raises(UserError, match="does not keep documents in a row apart"):
        require_apart(teacher, name, folder)


@pytest.mark.parametrize("name", [name for name, line in table().items() if line[2] == "yes"])
def test_documents_in_a_row_are_as_each_alone(name: str, saved: Saved, corpus: Path, tmp_path: Path) -> None:
    teacher = saved(name)
    rows = {"seq_len": 60, "count": 3, "context": "document"}
    build(settings(teacher, corpus, name, rows=rows, **DENSE), tmp_path / "cache")
    read, tokens, mask = rows_of(open_cache(tmp_path / "cache"))
    values, model, compared = torch.from_numpy(read.values), loaded(teacher, name), 0
    for row, starts in enumerate(read.document_start):
        bounds = [*np.flatnonzero(starts).tolist(), len(starts)]
        for begin, end in pairwise(bounds):
            with torch.no_grad():
                alone = model(input_ids=tokens[None, row, begin:end], use_cache=False).logits[0, :, :257]
            counted = mask[row, begin:end]
            if counted.any():
                assert_close(values[row, begin:end], alone.sort(-1, descending=True).values, counted)
            compared += int(counted.sum()) if begin else 0
    assert compared > 30, "hardly a second document in a row"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_serve_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    save_family(name, tmp_path)
    with pytest.raises(UserError) as raised:
        load_teacher(TeacherSettings(model=str(tmp_path), dtype="float32", attention=attention_of(name)))
    said = str(raised.value)
    assert "\n" not in said
    reason = re.search(rf"^\| {name} \| (.+?) \|$", PAGE, re.MULTILINE)
    assert reason is not None
    assert reason[1] in said


def test_the_page_has_no_family_that_is_not_tried() -> None:
    assert set(table()) == set(FAMILIES)
    assert len(table()) >= 90


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("Gemma", 32**0.5),
        ("Gemma2", 32**0.5),
        ("Granite", 12.0),
        ("MiniCPM3", 12.0),
        ("FalconH1", 3.0),
        ("Llama", None),
        ("GPT2", None),
        ("NanoChat", None),
    ],
)
def test_what_the_first_layer_reads_is_known(name: str, scale: float | None, saved: Saved) -> None:
    """To rounding: a student's embedding, multiplied so, is what the teacher's first layer reads."""
    folder = saved(name)
    teacher = load_teacher(TeacherSettings(model=str(folder), dtype="float32", attention=attention_of(name)))
    assert teacher.identity().embedding_scale == (None if scale is None else pytest.approx(scale, rel=1e-6))
    assert teacher.embeds_plainly == (name not in ("GPT2", "NanoChat"))
