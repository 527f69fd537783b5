"""Models of transformers for a cache: which configuration, which tokenizer. `tests/e2e/test_causal_lm.py` trains."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from delta_common.errors import UserError
from delta_common.logits.transform import LogitTransform
from student.model.shape import StudentSettings
from student.run.causal_lm import causal_lm, require_tokenizer, teacher_config_for, transformer_config
from student.run.student import frozen_weights_of
from teacher_cache.build.job import build
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.read.cache import Cache, open_cache
from teacher_cache.settings import BuildSettings
from tests.helpers.causal_students import causal_settings, save_llama
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.families import attention_of, save_family
from tests.helpers.transplant_cache import make_transplant_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return open_cache(make_transplant_cache(tmp_path_factory.mktemp("causal")))


def test_a_transformer_has_its_teachers_kind_of_blocks(cache: Cache) -> None:
    settings = StudentSettings(preset="transformer", blocks=2, heads=4)
    teacher = teacher_config_for(settings, cache)
    config = transformer_config(settings, cache)
    assert (config["model_type"], config["num_hidden_layers"]) == (teacher["model_type"], 2)
    assert config["intermediate_size"] != teacher["intermediate_size"]


@pytest.fixture(scope="module")
def bent(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cache]:
    """Caches that carry teachers which do something behind their heads."""
    folder = tmp_path_factory.mktemp("bent")
    corpus, found = write_text_corpus(folder), {}
    for name in ("Gemma2", "Granite", "RecurrentGemma"):
        teacher = {"model": str(save_family(name, folder / name)), "dtype": "float32", "carry": "body"}
        said = {
            "teacher": teacher | {"attention": attention_of(name)},
            "corpus": {"source": str(corpus)},
            "rows": {"seq_len": 8, "count": 2},
        }
        build(BuildSettings.model_validate(said), folder / "caches" / name)
        found[name] = open_cache(folder / "caches" / name)
    return found


@pytest.mark.parametrize(
    ("name", "transform"), [("Gemma2", LogitTransform(cap=3.0)), ("Granite", LogitTransform(scale=0.125))]
)
def test_a_transformer_does_behind_its_head_what_its_teacher_does_or_nothing(
    bent: dict[str, Cache], name: str, transform: LogitTransform
) -> None:
    cache, frozen = bent[name], frozen_weights_of(bent[name])
    for option, expected in (("teacher", transform), ("none", None)):
        settings = causal_settings("--model.preset=transformer", "--model.blocks=2", f"--model.head_transform={option}")
        student = causal_lm(settings, cache, frozen, None).eval()
        assert student.logit_transform == expected
        plain = AutoModelForCausalLM.from_config(student.model.config).eval()
        plain.load_state_dict(dict(student.model.named_parameters()), strict=False)
        plain.get_input_embeddings().weight.data = frozen.embedding
        plain.get_output_embeddings().weight.data = frozen.embedding if frozen.lm_head is None else frozen.lm_head
        tokens = torch.arange(8)[None]
        assert torch.allclose(student.logits(student(tokens)), plain(tokens).logits[..., :257], atol=1e-5)
        other = causal_settings(
            *("--model.preset=transformer", "--model.blocks=2"),
            f"--model.head_transform={'none' if option == 'teacher' else 'teacher'}",
        )
        with pytest.raises(UserError, match=r"model.head_transform \w+: the student's logits, of a .*, go through"):
            causal_lm(other, cache, frozen, student.config)


def test_a_family_that_cannot_do_without_its_cap_is_one_line(bent: dict[str, Cache]) -> None:
    cache = bent["RecurrentGemma"]
    options = ("--model.preset=transformer", "--model.blocks=3")
    student = causal_lm(causal_settings(*options), cache, frozen_weights_of(cache), None)
    assert student.logit_transform == LogitTransform(cap=3.0)
    with pytest.raises(
        UserError, match=r"model.head_transform none: .* cannot do without .* \(.+\); set it to teacher"
    ):
        causal_lm(causal_settings(*options, "--model.head_transform=none"), cache, frozen_weights_of(cache), None)


def test_a_named_model_keeps_its_weights(cache: Cache, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = save_llama(tmp_path / "llama")
    student = causal_lm(causal_settings(f"--model.hf={folder}"), cache, None, None)
    stored = load_file(folder / "model.safetensors")
    found = dict(student.model.named_parameters())
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)
    kept = causal_lm(causal_settings("--model.hf=gone"), cache, None, student.config)
    assert dict(kept.named_parameters()).keys() == dict(student.named_parameters()).keys()


def test_quantised_weights_and_half_a_file_are_refused(cache: Cache, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_llama(tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"its file lacks model.norm.weight, which would be random"):
        causal_lm(causal_settings(f"--model.hf={folder}"), cache, None, None)
    config = (folder / "config.json").read_text()
    quantised = config.replace(
        "{", '{"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true},', 1
    )
    (folder / "config.json").write_text(quantised)
    with pytest.raises(UserError, match="its weights are quantised"):
        causal_lm(causal_settings(f"--model.hf={folder}"), cache, None, None)


def test_a_cache_without_a_tokenizer_takes_random_weights_alone(tmp_path: Path) -> None:
    synthetic = open_cache(
        make_synthetic_cache(tmp_path / "cache", rows=8, seq_len=8, vocab_size=288, top_k=4, rows_per_shard=8)
    )
    folder = save_llama(tmp_path / "llama")
    with pytest.raises(UserError, match="another tokenizer than that of"):
        require_tokenizer(folder, synthetic, "it")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    random = causal_settings(f"--model.hf={folder}", "--model.hf_random=true")
    assert causal_lm(random, synthetic, None, None).vocab_size == 288
