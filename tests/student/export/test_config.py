"""The configuration of an export: the run's shape, and where it comes from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from delta_common.errors import UserError
from student.export.config import frozen_tensors, make_config
from student.inference.hf_config import DistilTransplantConfig, DistilXLSTMConfig
from student.model.transplant.options import TRANSPLANT, mixer_shape
from student.run.files import RunFiles, read_run
from teacher_cache.read.cache import Cache, open_cache
from tests.helpers.transplants import small_config


def test_the_configuration_has_the_runs_shape_and_provenance(finished_run: Path, uneven_cache: Path) -> None:
    files, cache = read_run(finished_run), open_cache(uneven_cache)
    assert files.summary is not None
    config = make_config(files, files.summary, cache, frozen_tensors(cache))
    assert isinstance(config, DistilXLSTMConfig)
    assert (config.num_hidden_layers, config.slstm_at, config.num_attention_heads) == (2, [0], 4)
    assert (config.tie_word_embeddings, config.head_bias) == (False, False)
    assert config.tokenizer_sha256 == cache.manifest.tokenizer_sha256
    assert config.provenance is not None
    assert config.provenance["cache_fingerprint"] == cache.fingerprint
    assert config.provenance["steps"] == 6


def of_preset(files: RunFiles, **model: Any) -> RunFiles:
    """A run as if it had another student."""
    settings = files.settings.model_copy(update={"model": files.settings.model.model_copy(update=model)})
    return RunFiles(files.path, settings, files.metrics, files.evaluations, files.costs, files.summary, files.plan)


@pytest.mark.parametrize("preset", ["transplant", "hybrid"])
def test_a_student_that_begins_as_its_teacher_has_its_configuration_and_the_mixers_numbers(
    finished_run: Path, uneven_cache: Path, tmp_path: Path, preset: str
) -> None:
    run, cache = shutil.copytree(finished_run, tmp_path / "run"), open_cache(uneven_cache)
    teacher = json.loads(json.dumps(small_config("qwen3")))
    (run / "teacher_config.json").write_text(json.dumps(teacher))
    files = of_preset(read_run(run), preset=preset, window=9, sinks=3)
    assert files.summary is not None
    config = make_config(files, files.summary, cache, frozen_tensors(cache))
    assert isinstance(config, DistilTransplantConfig)
    assert config.layers == teacher
    assert config.shape == mixer_shape(files.settings.model)
    assert (config.shape == TRANSPLANT) == (preset == "transplant")
    assert (config.hidden_size, config.num_hidden_layers) == (cache.manifest.hidden_size, cache.manifest.num_layers)
    (run / "teacher_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"teacher_config\.json: not what student-train writes there; run its command"):
        make_config(files, files.summary, cache, frozen_tensors(cache))


def test_frozen_weights_that_cannot_be_read_are_named(
    uneven_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(uneven_cache)
    monkeypatch.setattr(Cache, "frozen_weights", tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"cut\.safetensors: the teacher's frozen weights are not readable"):
        frozen_tensors(cache)
