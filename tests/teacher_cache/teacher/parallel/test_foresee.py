"""What a teacher needs is said from its configuration alone: of a checkpoint nothing else is there."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from delta_common.errors import UserError
from teacher_cache.cli import app
from teacher_cache.settings import BuildSettings
from teacher_cache.teacher.load import read_configuration
from teacher_cache.teacher.parallel.fit import ROOM_ON_GPU, activation_bytes
from teacher_cache.teacher.parallel.foresee import Need, foresee, render_need
from tests.helpers.families import family_model
from tests.teacher_cache.teacher.parallel.test_fit import LLAMA_70B


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 70 billion parameters without any: its configuration."""
    path = tmp_path_factory.mktemp("llama")
    LLAMA_70B.save_pretrained(path)
    return path


def asking(folder: Path, **rows: int) -> BuildSettings:
    return BuildSettings.model_validate(
        {"teacher": {"model": str(folder)}, "corpus": {"source": "nowhere"}, "rows": {"seq_len": 512, **rows}}
    )


def needed(folder: Path, gigabytes: float, **rows: int) -> Need:
    settings = asking(folder, **rows)
    return foresee(settings, read_configuration(settings.teacher), gigabytes)


def words(need: Need) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_need(need))
    return console.export_text()


@pytest.mark.parametrize(
    ("gigabytes", "parallel", "cut"),
    [
        (192, 1, "tensors"),
        (80, 2, "tensors"),
        (48, 4, "tensors"),
        (32, 8, "tensors"),
        (16, 12, "layers"),
        (4, None, None),
    ],
)
def test_the_number_that_is_needed_holds_weights_batch_and_logits(
    folder: Path, gigabytes: int, parallel: int | None, cut: str | None
) -> None:
    need = needed(folder, gigabytes)
    assert (need.parallel, need.cut) == (parallel, cut)
    assert need.batch == activation_bytes(8192, 28_672, 2) * 512 * 8
    assert list(need.weights_each) == [1, 2, 4, 8]
    if cut == "tensors":
        assert parallel is not None
        assert need.weights_each[parallel] + need.batch + ROOM_ON_GPU <= gigabytes * 2**30
        smaller = [n for n in need.weights_each if n < parallel]
        assert all(need.weights_each[n] + need.batch + ROOM_ON_GPU > 0.95 * gigabytes * 2**30 for n in smaller)


def test_time_is_of_the_operations_of_all_rows(folder: Path) -> None:
    assert needed(folder, 80).device_seconds is None
    need = needed(folder, 80, count=1000)
    assert need.device_seconds is not None
    assert need.device_seconds == pytest.approx(512_000 * 2 * 69.5e9 / (0.5 * 989e12), rel=0.001)
    assert "0.0 GPU-hours at 50% of the peak of an H100: 1 min 12 s for one builder on 2" in words(need)


def test_it_says_how_to_start_it(folder: Path) -> None:
    said = words(needed(folder, 80))
    assert "llama, 70.6 billion parameters, 131.4 GiB; nothing was loaded" in said
    assert "teacher.parallel 2: 67.7 GiB of weights on each GPU of 80.0 GiB" in said
    assert "torchrun --nproc-per-node 2 -m teacher_cache build" in said
    assert "4 (35.8 GiB each), 8 (19.9 GiB each)" in said
    assert "teacher-cache build …, which spreads its layers" in words(needed(folder, 16))
    assert "more than 64 GPUs of 4.0 GiB" in words(needed(folder, 4))


def test_a_teacher_without_a_plan_is_spread(folder: Path) -> None:
    need = foresee(asking(folder), family_model("GPT2").config, 80)
    assert (need.parallel, list(need.weights_each)) == (1, [1])


def test_the_command_prints_it_and_refuses_what_is_no_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--teacher.model", str(folder), "--corpus.source", "nowhere", "--json", "--gpu-memory"]
    assert app([*words, "80"], result_action="return_value", exit_on_error=False) == 0
    assert json.loads(capsys.readouterr().out)["parallel"] == 2
    for memory in ("0", "-8", "nan"):
        with pytest.raises(UserError, match=rf"--gpu-memory {memory}: the GiB of one GPU, such as 80"):
            app([*words, memory], result_action="return_value", exit_on_error=False)


def test_a_configuration_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.model .*: cannot be read: "):
        read_configuration(asking(tmp_path).teacher)
