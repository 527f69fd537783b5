"""The DeepSpeed configuration: the user's JSON and our settings must not contradict each other."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delta_common.errors import UserError
from delta_common.settings_file import load_settings
from student.settings import TrainSettings
from student.train.engine import announce_norm, deepspeed_config, gradient_norm, make_engine
from student.train.processes import joined_processes, quiet_deepspeed
from tests.helpers import ROOT
from tests.helpers.several_jobs import let_fp16_run_on_a_cpu

CONFIGS = ROOT / "configs" / "deepspeed"


def merged(tmp_path: Path, written: Any, *overrides: str) -> dict[str, Any]:
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(written))
    settings = load_settings(TrainSettings, None, overrides).model_copy(update={"deepspeed": path})
    return deepspeed_config(settings, world_size=2, out=tmp_path / "out")


def test_the_settings_fill_in_what_the_json_leaves_open(tmp_path: Path) -> None:
    written = {"train_batch_size": "auto", "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}
    config = merged(tmp_path, written, "--training.precision", "bf16")
    assert config["train_batch_size"] == 64
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 1.0
    assert config["bf16"] == {"enabled": True}
    assert config["fp16"] == {"enabled": False}
    assert config["zero_optimization"] == {"stage": 2}


def test_other_keys_of_the_json_are_kept(tmp_path: Path) -> None:
    written = {"fp16": {"initial_scale_power": 12}, "csv_monitor": {"enabled": True, "output_path": "here"}}
    config = merged(tmp_path, written, "--training.precision", "fp16")
    assert config["fp16"] == {"initial_scale_power": 12, "enabled": True}
    assert config["csv_monitor"]["output_path"] == "here"


def test_a_note_and_a_byte_order_mark_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "deepspeed.json").write_bytes(b'\xef\xbb\xbf{"_comment": "mine", "zero_optimization": {"stage": 1}}')
    settings = TrainSettings(deepspeed=tmp_path / "deepspeed.json")
    assert deepspeed_config(settings, world_size=1, out=tmp_path)["zero_optimization"] == {"stage": 1}


def test_a_stage_left_to_us_is_0(tmp_path: Path) -> None:
    assert merged(tmp_path, {"zero_optimization": {"stage": "auto"}})["zero_optimization"] == {"stage": 0}


def _trained(tmp_path: Path, precision: str, clipping: str, *, ours: bool) -> tuple[list[Tensor], list[bool]]:
    """Parameters after steps with scaled gradients, one of which is not finite, and which steps were taken."""
    options = ("--training.precision", precision, "--optimizer.gradient_clipping", clipping)
    settings = load_settings(TrainSettings, None, options)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    engine = make_engine(module, settings, deepspeed_config(settings, world_size=1, out=tmp_path), lambda _: 1.0)
    taken = []
    for step in range(5):
        for parameter in module.parameters():
            parameter.grad = torch.randn_like(parameter) * (torch.inf if step == 2 else 3.0)
        if ours:
            announce_norm(engine, gradient_norm(engine))
        engine.optimizer.step()
        taken.append(not engine.optimizer.overflow)
        engine.optimizer.zero_grad()
    return [p.detach().clone() for p in module.parameters()], taken


@pytest.mark.usefixtures("only_process")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("clipping", ["0.0", "1e9", "0.01"])
def test_a_step_over_all_parameters_at_once_is_deepspeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, clipping: str
) -> None:
    let_fp16_run_on_a_cpu(monkeypatch)
    (found, taken), (expected, theirs) = (_trained(tmp_path, precision, clipping, ours=x) for x in (True, False))
    assert taken == theirs == [True, True, False, True, True]
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("only_process")
def test_a_monitor_without_its_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = merged(tmp_path, {"wandb": {"enabled": True}}) | {"train_batch_size": 32}
    settings = TrainSettings(deepspeed=tmp_path / "deepspeed.json")
    with pytest.raises(UserError, match=r"deepspeed\.json: asks for a package that is not installed \(.*wandb"):
        make_engine(nn.Linear(2, 2), settings, config, lambda step: 1.0)


def test_without_a_json_it_is_zero_0(tmp_path: Path) -> None:
    config = deepspeed_config(TrainSettings(), world_size=1, out=tmp_path)
    assert config["zero_optimization"] == {"stage": 0}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"train_batch_size": 7}, "train_batch_size 7 differs from the batch over all processes 64"),
        ({"gradient_clipping": 0.5}, "gradient_clipping 0.5 differs from optimizer.gradient_clipping 1.0"),
        ({"fp16": {"enabled": True}}, "fp16.enabled True differs from training.precision fp32, which means False"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled True differs from training.precision fp32"),
        ({"zero_optimization": True}, 'zero_optimization must be a section such as {"stage": 2}, not true'),
        ({"zero_optimization": None}, "zero_optimization must be a section such as .*, not null"),
        ({"zero_optimisation": {"stage": 2}}, "'zero_optimisation' has no meaning here; .* write 'zero_optimization'"),
        ({"elasticity": {"enabled": True}}, "'elasticity' has no meaning here; remove it"),
        ({"compression_training": {}}, "'compression_training' has no meaning here; remove it"),
        ({"optimizer": {"type": "Adam"}}, "'optimizer' does not belong here; remove it"),
        ({"fp16": True}, "fp16 must be a section"),
        ([], "expected a JSON object"),
    ],
)
def test_a_contradiction_names_the_key(tmp_path: Path, written: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        merged(tmp_path, written)
    assert "deepspeed.json" in str(error.value)


@pytest.fixture
def only_process() -> Iterator[None]:
    with quiet_deepspeed(), joined_processes():
        yield


@pytest.mark.usefixtures("only_process")
def test_what_deepspeed_refuses_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text('{"zero_optimization": {"stage": 9}}')
    settings = TrainSettings(deepspeed=path)
    config = deepspeed_config(settings, world_size=1, out=tmp_path)
    with pytest.raises(UserError, match=r"deepspeed\.json: DeepSpeed refuses this configuration"):
        make_engine(nn.Linear(2, 2), settings, config, lambda step: 1.0)


@pytest.mark.usefixtures("only_process")
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.name)
def test_every_shipped_json_is_one_deepspeed_takes(tmp_path: Path, path: Path) -> None:
    settings = TrainSettings(deepspeed=path)
    config = deepspeed_config(settings, world_size=1, out=tmp_path)
    assert make_engine(nn.Linear(2, 2), settings, config, lambda step: 0.5).get_lr() == [1e-4]
