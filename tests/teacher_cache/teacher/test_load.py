"""A checkpoint that does not fit its model is refused by name; one that does is loaded as its files say."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from delta_common.errors import UserError
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.load import _device, _gguf_read_once, _source, _unpacked, load_teacher
from tests.helpers.families import family_model, save_family
from tests.helpers.quantised import save_fp8, save_mxfp4, want

Tensors = dict[str, Tensor]


def rename(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def cut(tensors: Tensors) -> Tensors:
    name = "model.layers.0.mlp.down_proj.weight"
    return tensors | {name: tensors[name][:, :32].contiguous()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_family("Llama", tmp_path, tie_word_embeddings=False)


def load(folder: Path) -> None:
    load_teacher(TeacherSettings(model=str(folder), dtype="float32"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename("_orig_mod."), r"30 missing \(lm_head.weight, .*; 30 not the model's \(_orig_mod.lm_head.weight"),
        (rename("module."), r"30 missing .*; 30 not the model's \(module.lm_head.weight"),
        (without("model.layers.1.mlp.down_proj.weight"), r"tensors 1 missing \(model.layers.1.mlp.down_proj.weight\)"),
        (without("lm_head.weight"), r"tensors 1 missing \(lm_head.weight\)"),
        (cut, "cannot be loaded: "),
    ],
)
def test_a_teacher_that_would_be_partly_random_is_refused(
    folder: Path, change: Callable[[Tensors], Tensors], said: str
) -> None:
    load(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=said):
        load(folder)


@pytest.mark.parametrize(("layers", "said"), [(4, "9 missing"), (2, "9 not the model's")])
def test_a_configuration_of_another_depth_is_refused(folder: Path, layers: int, said: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    with pytest.raises(UserError, match=rf"{said} .*check config.json \(num_hidden_layers\)"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "its weights are damaged or cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer, not the weights"),
        (None, "cannot be loaded"),
    ],
)
def test_a_damaged_file_of_weights_is_one_line(folder: Path, content: bytes | None, said: str) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(UserError, match=said):
        load(folder)


def test_one_part_of_a_split_gguf_is_refused(tmp_path: Path) -> None:
    part = tmp_path / "model-00001-of-00002.gguf"
    part.write_bytes(b"GGUF")
    with pytest.raises(UserError, match="one part of a split GGUF; merge them"):
        load_teacher(TeacherSettings(model=str(part)))


def test_an_attention_that_a_family_lacks_names_the_setting(tmp_path: Path) -> None:
    save_family("Mamba", tmp_path)
    with pytest.raises(UserError, match=r"set teacher.attention to eager"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_an_encoder_decoder_is_refused_before_its_weights_are_read(name: str, tmp_path: Path) -> None:
    save_family(name, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match="an encoder-decoder, whose logits depend on a second text; give a decoder-only"
    ):
        load(tmp_path)


def test_a_model_that_transformers_cannot_run_is_one_line(tmp_path: Path) -> None:
    save_family("Zamba2", tmp_path, hybrid_layer_ids=[6, 12])  # it has four layers
    with pytest.raises(
        UserError, match=r"^teacher.model .*: transformers cannot run it over a few tokens \(.+\); check"
    ):
        load(tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU transformers may leave them packed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("save", [save_fp8, save_mxfp4])
def test_weights_that_transformers_unpacks_are_those_of_the_file_in_the_asked_dtype(
    save: Callable[[Path], Tensors], dtype: str, tmp_path: Path
) -> None:
    meant = save(tmp_path)
    teacher = load_teacher(TeacherSettings(model=str(tmp_path), dtype=dtype, attention="eager"))
    found = teacher._model.state_dict()
    for name, weight in meant.items():
        assert torch.equal(found[name], weight.to(getattr(torch, dtype))), name
    assert teacher.identity().quantization is None


@pytest.mark.parametrize(
    ("package", "config"),
    [
        ("optimum", {"quant_method": "gptq", "bits": 4, "group_size": 16}),
        ("gptqmodel", {"quant_method": "awq", "bits": 4, "group_size": 16}),
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("compressed-tensors", {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
        ("torchao", {"quant_method": "torchao", "quant_type": {"default": "int8_weight_only"}}),
        ("optimum-quanto", {"quant_method": "quanto", "weights": "int8"}),
        ("auto-round", {"quant_method": "auto-round", "bits": 4}),
    ],
)
def test_a_quantisation_whose_package_is_missing_is_one_line(
    package: str, config: dict[str, object], folder: Path
) -> None:
    if importlib.util.find_spec(package.split("-")[0] if package == "optimum-quanto" else package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    want(folder, config)
    with pytest.raises(UserError, match=rf"teacher.model .*: cannot be loaded: .*pip install [^`]*{package}") as raised:
        load(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("odd", [{"return_dict": False}, {"output_attentions": True}, {"output_hidden_states": True}])
def test_what_a_configuration_wants_returned_changes_nothing(folder: Path, odd: dict[str, bool]) -> None:
    plain = load_teacher(TeacherSettings(model=str(folder), dtype="float32", attention="eager"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | odd))
    found = load_teacher(TeacherSettings(model=str(folder), dtype="float32", attention="eager"))
    tokens = torch.arange(24).view(2, 12)
    assert torch.equal(found.states(tokens, mean=True).final, plain.states(tokens, mean=True).final)
    assert found.identity().config_sha256 == plain.identity().config_sha256


def test_a_buffer_that_is_a_single_number_has_a_digest(folder: Path) -> None:
    teacher = load_teacher(TeacherSettings(model=str(folder), dtype="float32"))
    before = teacher.identity().weights_sha256
    teacher._model.register_buffer("count", torch.tensor(3))
    assert teacher.identity().weights_sha256 != before


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    save_family("Llama", tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load(tmp_path)
    assert family_model("Llama", tie_word_embeddings=True).lm_head.weight.shape == (288, 32)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./absent", "no such folder"),
        ("absent.gguf", "no such GGUF file"),
        ("package:no_such_package", "no such package is installed"),
        ("package:json", "expected one GGUF file inside it, found none"),
        ("nobody/nothing", "teacher.model nobody/nothing: cannot be loaded"),
    ],
)
def test_a_teacher_that_cannot_be_found_is_one_line(model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_teacher(TeacherSettings(model=model))


def test_one_gguf_inside_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_weights"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('imported')")
    file = package / "data" / "model.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    found, arguments = _source(TeacherSettings(model="package:some_weights"))
    assert (found, arguments) == (str(file.parent), {"gguf_file": "model.gguf"})
    (package / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match=r"expected one GGUF file inside it, found model\.gguf, other\.gguf"):
        _source(TeacherSettings(model="package:some_weights"))


def test_a_hub_id_has_its_revision_and_a_folder_has_none(tmp_path: Path) -> None:
    assert _source(TeacherSettings(model="owner/name", revision="abc")) == ("owner/name", {"revision": "abc"})
    assert _source(TeacherSettings(model="owner/name")) == ("owner/name", {})
    assert _source(TeacherSettings(model=str(tmp_path), revision="abc")) == (str(tmp_path), {})


def test_each_process_of_a_launcher_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _device("auto") == _device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match=r"teacher\.device cuda: this torch sees no GPU; use auto or cpu"):
        _device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert _device("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "6")
    assert _device("cuda") == torch.device("cuda", 2)
    assert _device("cpu") == torch.device("cpu")


def test_a_gguf_file_is_always_unpacked() -> None:
    assert _unpacked({"gguf_file": "it.gguf"})["quantization_config"].dequantize is True
    assert _unpacked({"revision": "main"}) == {}


def test_a_gguf_file_is_read_once_while_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: read.append(path) or object())
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with _gguf_read_once():
        assert gguf.GGUFReader("a") is gguf.GGUFReader("a") is not gguf.GGUFReader("b")
    assert read == ["a", "b"]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_weights_are_digested_once_for_a_checkpoint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("delta_common.weights.WORTH_REMEMBERING", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "user"))
    settings = TeacherSettings(model=str(folder), dtype="float32")
    first = load_teacher(settings).identity()
    monkeypatch.setattr("teacher_cache.teacher.model.weights_sha256", lambda _: "digested again")
    assert load_teacher(settings).identity() == first
    other = load_teacher(settings.model_copy(update={"dtype": "bfloat16"})).identity()
    assert other.weights_sha256 == "digested again", "in another dtype they are other weights"
    rewritten = folder / "model.safetensors"
    rewritten.write_bytes(rewritten.read_bytes())
    assert load_teacher(settings).identity().weights_sha256 == "digested again"
