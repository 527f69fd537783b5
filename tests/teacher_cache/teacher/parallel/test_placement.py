"""Weights are read to where they belong: GPUs are numbers here, and what accelerate makes of them is its own."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.integrations.accelerate import _get_device_map

from delta_common.errors import UserError
from teacher_cache.settings import TeacherSettings
from teacher_cache.teacher.parallel.fit import ROOM_ON_GPU
from teacher_cache.teacher.parallel.group import ALONE, TeacherGroup
from teacher_cache.teacher.parallel.placement import placement
from tests.helpers.families import family_model

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ONE_OF_TWO = TeacherGroup(0, 2)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Free bytes by GPU, to be changed."""
    free = {0: ROOM_ON_GPU + 2**20, 1: ROOM_ON_GPU + 2**20}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 0))
    return free


def asking(parallel: int) -> TeacherSettings:
    return TeacherSettings(model="m", dtype="float32", parallel=parallel)


def test_one_device_takes_all_that_is_read() -> None:
    config = family_model("Qwen2").config
    assert placement(asking(1), CPU, ALONE, config) == {"device_map": {"": CPU}}
    assert placement(asking(1), CPU, ALONE, None) == {}


def test_processes_of_a_group_have_transformers_cut_it(monkeypatch: pytest.MonkeyPatch) -> None:
    placed = placement(asking(2), CPU, ONE_OF_TWO, family_model("Qwen2").config)
    assert placed["distributed_config"].tp_size == 2
    with pytest.raises(UserError, match=r"teacher\.parallel 2: weights of a GGUF file are not cut"):
        placement(asking(2), CPU, ONE_OF_TWO, None)
    with pytest.raises(UserError, match="no tensor-parallel plan for gpt2"):
        placement(asking(2), CPU, ONE_OF_TWO, family_model("GPT2").config)


@pytest.mark.parametrize("name", ["Qwen2", "GPT2", "Mamba", "Falcon"])
def test_one_process_spreads_the_layers_in_order_over_its_gpus(two_gpus: dict[int, int], name: str) -> None:
    placed = placement(asking(2), GPU, ALONE, family_model(name).config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(family_model(name).config)
    placed_at = _get_device_map(model, placed["device_map"], placed["max_memory"], None)
    layers = [gpu for part, gpu in placed_at.items() if part.rpartition(".")[2].isdecimal()]
    assert set(layers) == {0, 1}
    assert layers == sorted(layers)
    assert set(placed_at.values()) == {0, 1}


def test_gpus_that_are_not_there_or_too_small_are_said_before_loading(two_gpus: dict[int, int]) -> None:
    config = family_model("Qwen2").config
    said = (
        r"teacher\.parallel 3: .* over 3 GPUs, and this machine has 2; set it to 2, or .* torchrun --nproc-per-node 3"
    )
    for about in (config, None):
        with pytest.raises(UserError, match=said):
            placement(asking(3), GPU, ALONE, about)
    two_gpus[1] = ROOM_ON_GPU + 1000
    with pytest.raises(UserError, match=r"teacher\.model m: its weights take .* on each of 2, and a GPU has"):
        placement(asking(2), GPU, ALONE, config)


def test_a_quantised_checkpoint_is_not_sized_by_its_configuration(two_gpus: dict[int, int]) -> None:
    two_gpus[0] = ROOM_ON_GPU + 1000
    config = family_model("Qwen2").config
    with pytest.raises(UserError, match="its weights take"):
        placement(asking(1), GPU, ALONE, config)
    config.quantization_config = {"quant_method": "gptq"}
    assert placement(asking(1), GPU, ALONE, config) == {"device_map": {"": GPU}}
