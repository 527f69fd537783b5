"""A digest of weights follows every name, type, shape and byte."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from delta_common import weights
from delta_common.weights import FileFacts, remembered_sha256, weights_sha256


def test_every_part_of_a_tensor_counts_and_the_order_does_not() -> None:
    base = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}
    same = {"b": torch.tensor(3), "a": torch.arange(6.0).view(2, 3)}
    assert weights_sha256(base) == weights_sha256(same)
    others = [
        base | {"a": torch.arange(6.0).view(3, 2)},
        base | {"a": torch.arange(6.0).view(2, 3).double()},
        base | {"a": torch.arange(1.0, 7.0).view(2, 3)},
        {"c": base["a"], "b": base["b"]},
        {"a": base["a"]},
    ]
    assert len({weights_sha256(base), *map(weights_sha256, others)}) == 6


class Packed(torch.Tensor):
    """Numbers and a scale that pass for one tensor, as torchao makes them."""

    @staticmethod
    def __new__(cls, numbers: torch.Tensor, scale: torch.Tensor) -> "Packed":
        return torch.Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=torch.float32)

    def __init__(self, numbers: torch.Tensor, scale: torch.Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    @classmethod
    def __torch_dispatch__(cls, func: object, *_: object) -> None:
        raise NotImplementedError(func)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None


def test_of_a_packed_tensor_what_it_is_made_of_counts() -> None:
    numbers, scale = torch.arange(6, dtype=torch.int8), torch.tensor(0.5)
    base = weights_sha256({"a": Packed(numbers, scale)})
    assert base == weights_sha256({"a": Packed(numbers.clone(), scale.clone())})
    others = [Packed(numbers + 1, scale), Packed(numbers, scale * 2)]
    assert len({base, *(weights_sha256({"a": other}) for other in others)}) == 3


def test_a_view_has_the_digest_of_its_numbers() -> None:
    whole = torch.arange(12.0).view(3, 4)
    assert weights_sha256({"a": whole.T}) == weights_sha256({"a": whole.T.contiguous()})


def test_tensors_that_come_one_by_one_have_the_digest_of_all() -> None:
    """Which is that of names, types, shapes and bytes one after another."""
    tensors = {name: torch.arange(5.0) + place for place, name in enumerate("abcdef")}
    expected = hashlib.sha256()
    for name, tensor in tensors.items():
        expected.update(f"{name} torch.float32 (5,)".encode() + tensor.numpy().tobytes())
    assert weights_sha256(tensors) == weights_sha256(iter(tensors.items())) == expected.hexdigest()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A checkpoint that is large enough to be remembered."""
    monkeypatch.setattr(weights, "WORTH_REMEMBERING", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    paths = [tmp_path / "model.safetensors", tmp_path / "config.json"]
    for path in paths:
        path.write_text("weights")
    return paths


def facts(files: list[Path]) -> list[FileFacts]:
    return [FileFacts.of(file) for file in files]


def counted(times: list[str], found: str = "a" * 64) -> Callable[[], str]:
    return lambda: (times.append(found), found)[1]


def test_a_digest_is_computed_once_for_files_that_nobody_writes_to(files: list[Path]) -> None:
    times: list[str] = []
    for _ in range(3):
        assert remembered_sha256(facts(files), {"dtype": "bfloat16"}, counted(times)) == "a" * 64
    assert len(times) == 1
    assert remembered_sha256(facts(files), {"dtype": "float32"}, counted(times, "b" * 64)) == "b" * 64


def test_files_that_were_written_to_are_read_again_even_with_their_old_times(files: list[Path]) -> None:
    remembered_sha256(facts(files), {}, counted([]))
    before = files[0].stat()
    files[0].write_text("changed")
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (files[0].stat().st_size, files[0].stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert remembered_sha256(facts(files), {}, counted([], "c" * 64)) == "c" * 64


def test_what_was_kept_is_not_believed_when_it_is_damaged(files: list[Path], tmp_path: Path) -> None:
    remembered_sha256(facts(files), {}, counted([]))
    [kept] = (tmp_path / "user" / "delta-cache" / "weights").iterdir()
    for content in (b"", b"[]", b"{}", kept.read_bytes()[:-8], kept.read_bytes().replace(b"a" * 64, b"a" * 63)):
        kept.write_bytes(content)
        assert remembered_sha256(facts(files), {}, counted([], "d" * 64)) == "d" * 64


def test_a_folder_that_cannot_be_written_and_small_files_only_cost_time(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user").write_text("a file in the way")
    times: list[str] = []
    for _ in range(2):
        assert remembered_sha256(facts(files), {}, counted(times)) == "a" * 64
    assert len(times) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(weights, "WORTH_REMEMBERING", 1000)
    remembered_sha256(facts(files), {}, counted(times))
    assert not (tmp_path / "other").exists()
