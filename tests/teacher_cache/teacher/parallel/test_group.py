"""Processes of one teacher: who they are, how work is divided, and a cut teacher beside the same one uncut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore

from delta_common.errors import UserError
from teacher_cache.teacher.parallel import group as module
from teacher_cache.teacher.parallel.group import ALONE, LeftOut, TeacherGroup, group_size, joined_group
from tests.helpers.cut_teachers import launch
from tests.helpers.families import save_family

DENSE = [
    "Qwen2",
    "Qwen3",
    "Gemma",
    "Gemma2",
    "Gemma4Text",
    "Cohere2",
    "Granite",
    "Phi3",
    "GPTNeoX",
    "MiniCPM3",
    "Olmo2",
]
EXPERTS = ["Mixtral", "Qwen3Moe", "DeepseekV3", "Llama4Text", "GraniteMoe", "Ernie4_5_Moe"]
HYBRIDS = ["Jamba", "GraniteMoeHybrid", "Qwen3Next", "Lfm2Moe"]
CUT = [*DENSE, *EXPERTS, *HYBRIDS]
REFUSED = "Doge"
"""Has a plan that transformers cannot run."""


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For each family, how far a teacher in two processes is from the same one in one, by what is compared."""
    folder = tmp_path_factory.mktemp("families")
    found = launch([save_family(name, folder / name) for name in [*CUT, REFUSED]], folder / "apart.json")
    return {Path(name).name: values for name, values in found.items()}


@pytest.mark.parametrize("name", CUT)
def test_a_teacher_in_two_processes_is_the_teacher_in_one(apart: dict[str, Any], name: str) -> None:
    found = dict(apart[name])
    assert {found.pop("identity"), found.pop("files")} == {0.0}
    assert len(found) == 10
    assert max(found.values()) <= 1e-5
    assert max(found.values()) > 0, "two processes add in another order: equal to the bit would be one process twice"


def test_a_plan_that_cannot_be_run_is_one_line(apart: dict[str, Any]) -> None:
    assert apart[REFUSED].startswith("teacher.parallel 2: transformers cannot run this teacher cut so (")
    assert apart[REFUSED].endswith("; set it to another number, or run without torchrun")


@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_shares_put_together_are_the_whole_and_equally_long(count: int) -> None:
    everything = torch.arange(count) * 10
    shares = [everything[TeacherGroup(rank, 3).share(count)] for rank in range(3)]
    assert {len(share) for share in shares} == {-(-count // 3)}
    assert torch.equal(torch.cat(shares)[:count], everything)
    assert torch.equal(everything[ALONE.share(count)], everything)


def test_one_process_alone_tells_nobody_and_joins_nothing() -> None:
    part = torch.ones(3)
    ALONE.tell("states", part)
    ALONE.stop()
    assert ALONE.joined(part, 3) is part
    with pytest.raises(UserError, match="as it is"), ALONE.agreeing():
        raise UserError("as it is")


@pytest.mark.parametrize(("world", "parallel", "size"), [(None, 4, 1), ("1", 4, 1), ("8", 4, 4), ("8", 1, 1)])
def test_a_launcher_of_several_processes_makes_groups(
    monkeypatch: pytest.MonkeyPatch, world: str | None, parallel: int, size: int
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert group_size(parallel) == size
    if size == 1:
        with joined_group(parallel, on_gpus=False) as group:
            assert group is ALONE


@pytest.mark.parametrize(("parallel", "world"), [(3, 2), (4, 6)])
def test_processes_that_make_no_whole_groups_are_said_once(
    monkeypatch: pytest.MonkeyPatch, parallel: int, world: int
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    said = rf"teacher\.parallel {parallel}: torchrun started {world} processes, .* start {parallel} or a multiple"
    for rank, expected in ((0, pytest.raises(UserError, match=said)), (1, pytest.raises(LeftOut))):
        monkeypatch.setenv("RANK", str(rank))
        with expected, joined_group(parallel, on_gpus=False):
            pass


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = r"teacher\.parallel 4: 4 processes on a machine with 2 GPUs, .* start 2 \(--nproc-per-node\)"
    with pytest.raises(UserError, match=said), joined_group(4, on_gpus=True):
        pass


def test_tensors_travel_by_way_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, tuple[Tensor, ...], dict[str, object]]] = []
    monkeypatch.setattr(
        "torch.distributed.broadcast_object_list", lambda call, src, group: sent.extend(call), raising=True
    )
    TeacherGroup(1, 2).tell("states", torch.ones(2))
    assert sent == []
    view = torch.arange(6).view(2, 3)[:, :2]
    TeacherGroup(0, 2).tell("states", view, mean=False)
    [(name, (given,), named)] = sent
    assert (name, named) == ("states", {"mean": False})
    assert given.is_contiguous()
    assert torch.equal(given, view)


def test_who_is_led_ends_without_a_word_when_the_leader_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr("torch.distributed.broadcast_object_list", gone)
    with pytest.raises(LeftOut) as ended:
        TeacherGroup(1, 2).heard()
    assert ended.value.code == 1
    TeacherGroup(0, 2).stop()  # nobody is left to be told


@pytest.mark.parametrize(
    ("raised", "told"), [(None, True), (UserError("x"), True), (LeftOut(), True), (MemoryError(), False)]
)
def test_the_others_are_told_of_an_end_between_calls_and_left_to_the_launcher_amid_one(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException | None, told: bool
) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    calls: list[str] = []
    worlds: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "rendezvous", lambda _: iter([(HashStore(), 2, 4)]))
    for name in ("new_group", "destroy_process_group", "broadcast_object_list"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, name=name, **__: calls.append(name))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda *, rank, world_size, **_: worlds.append((rank, world_size))
    )

    def work() -> None:
        with joined_group(2, on_gpus=False) as group:
            assert (group.rank, group.size, group.leads) == (0, 2, True)
            group.before_leaving.append(lambda: calls.append("let go"))
            if raised is not None:
                raise raised

    if raised is None:
        work()
    else:
        with pytest.raises(type(raised)):
            work()
    assert worlds == [(0, 2)], "the third of four processes leads the second teacher"
    assert calls == ["new_group", *(["broadcast_object_list", "let go", "destroy_process_group"] if told else [])]
