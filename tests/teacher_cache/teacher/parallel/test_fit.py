"""What a teacher takes on each device is told from its configuration, and what cannot be is one line."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from delta_common.errors import UserError
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.parallel import fit
from teacher_cache.teacher.parallel.fit import (
    ROOM_ON_GPU,
    TeacherSize,
    free_bytes,
    is_cut,
    require_cut,
    require_memory,
    teacher_size,
)
from tests.helpers.families import family_model

GB = 10**9
LLAMA_70B = LlamaConfig(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    vocab_size=128_256,
    tie_word_embeddings=False,
)


@pytest.fixture(scope="module")
def llama() -> TeacherSize:
    return teacher_size(LLAMA_70B, torch.bfloat16)


def asking(parallel: int) -> TeacherSettings:
    return TeacherSettings(model="m", parallel=parallel)


def test_70_billion_are_sized_without_a_weight_in_memory(llama: TeacherSize) -> None:
    assert llama.parameters == 70_553_706_496
    assert llama.bytes == 2 * llama.parameters
    ends = 2 * 2 * 128_256 * 8192
    norms = 2 * (2 * 80 + 1) * 8192
    assert llama.bytes_each(1) == llama.bytes
    assert llama.bytes_each(8) == ends + norms + (llama.bytes - ends - norms) // 8
    assert llama.heads == (("attention heads", 64), ("key-value heads", 8))
    assert llama.operations is not None
    assert llama.operations.position + llama.operations.counted == 2 * (llama.parameters - 128_256 * 8192 - norms // 2)


@pytest.mark.parametrize(
    ("memory", "fewest"), [(200, 1), (80, 2), (72, 4), (48, 4), (25, 8), (20, 8), (3, 48), (1, None)]
)
def test_the_fewest_devices_that_hold_it_divide_its_heads(llama: TeacherSize, memory: int, fewest: int | None) -> None:
    cut = "tensors" if memory > 20 else "layers"
    assert llama.fewest(memory * GB) == (None if fewest is None else (fewest, cut))


@pytest.mark.parametrize("name", ["Qwen2", "Mixtral", "Gemma", "Phi3"])
def test_a_size_is_that_of_the_model(name: str) -> None:
    model = family_model(name)
    size = teacher_size(model.config, torch.float32)
    assert size.bytes == 4 * sum(p.numel() for p in model.parameters())
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    plan = dict(model.tp_plan)
    cut = [p for n, p in model.named_parameters() if id(p) not in ends and is_cut(n, plan)]
    assert size.cut_bytes == 4 * sum(p.numel() for p in cut)
    assert size.cut_bytes > 0.5 * (size.bytes - sum(4 * p.numel() for p in model.parameters() if id(p) in ends))


def test_heads_that_a_plan_leaves_together_need_not_divide() -> None:
    assert teacher_size(family_model("Phi3").config, torch.float32).divides(3)
    assert teacher_size(family_model("GPTNeoX").config, torch.float32).heads == (("attention heads", 4),)


def test_a_model_without_a_plan_is_spread_by_layers() -> None:
    size = teacher_size(family_model("GPT2").config, torch.float32)
    assert not size.has_plan
    assert not size.divides(2)
    assert size.fewest(size.bytes / 3 + 1) == (3, "layers")
    with pytest.raises(UserError, match=r"no tensor-parallel plan for gpt2; run without torchrun, .* over 2 GPUs"):
        require_cut(asking(2), size, "gpt2")


def test_a_number_that_does_not_divide_the_heads_names_those_that_do(llama: TeacherSize) -> None:
    require_cut(asking(4), llama, "llama")
    with pytest.raises(
        UserError, match=r"3: does not divide .* 64 attention heads and 8 key-value heads; .* 2 or 4 or 8$"
    ):
        require_cut(asking(3), llama, "llama")
    odd = teacher_size(Qwen2Config(hidden_size=21, num_attention_heads=3, num_key_value_heads=1), torch.float32)
    with pytest.raises(UserError, match="3 attention heads and 1 key-value heads; run without torchrun"):
        require_cut(asking(3), odd, "qwen2")


def test_too_little_memory_names_the_number_that_would_do(llama: TeacherSize) -> None:
    require_memory(asking(2), llama, 80 * GB, tensor=True, on_gpu=True)
    with pytest.raises(
        UserError, match=r"131\.4 GiB in bfloat16, and a GPU has 74\.5 GiB free; set teacher\.parallel to 2 \(torchrun"
    ):
        require_memory(asking(1), llama, 80 * GB, tensor=False, on_gpu=True)
    with pytest.raises(UserError, match=r"67\.7 GiB on each of 2, and a GPU has .*; set teacher\.parallel to 4 "):
        require_memory(asking(2), llama, 60 * GB, tensor=True, on_gpu=True)
    with pytest.raises(UserError, match=r"a process has .* free; take a machine with more memory"):
        require_memory(asking(1), llama, 60 * GB, tensor=False, on_gpu=False)
    layers = TeacherSize(1, 100 * GB, 0, (), None, 1)
    require_memory(asking(2), layers, 50 * GB + ROOM_ON_GPU, tensor=False, on_gpu=True)
    with pytest.raises(UserError, match=r"set teacher\.parallel to 3 \(without torchrun\)"):
        require_memory(asking(2), layers, 45 * GB, tensor=False, on_gpu=True)


def test_free_bytes_of_a_host_are_shared_by_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = free_bytes(torch.device("cpu"), 1)
    assert 0.3 < free_bytes(torch.device("cpu"), 2) / whole < 0.7
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert free_bytes(torch.device("cuda", 0), 2) == 7


def test_a_configuration_that_no_causal_model_has_is_left_to_the_loader() -> None:
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        teacher_size(SimpleNamespace(), torch.float32)
    assert fit.AutoModelForCausalLM is AutoModelForCausalLM
