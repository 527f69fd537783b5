"""Shared fixtures: a tiny seeded teacher on disk, synthetic caches, quiet third-party libraries."""

import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from student.train.processes import Processes, joined_processes, quiet_deepspeed
from teacher_cache.build.synthetic import make_synthetic_cache
from teacher_cache.store import objects
from tests.helpers.object_server import BUCKET, Proxy, environment, proxy_before, s3_server
from tests.helpers.tiny_teacher import save_tiny_teacher

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2 of random weights over bytes, its vocabulary padded from 257 tokens to 288 rows."""
    return save_tiny_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def only_process() -> Iterator[Processes]:
    """This process, joined by no other, for fixtures of a module."""
    with quiet_deepspeed(), joined_processes() as processes:
        yield processes


@pytest.fixture
def alone(only_process: Processes) -> Iterator[Processes]:
    """This process, joined by no other."""
    with quiet_deepspeed():
        yield only_process


@pytest.fixture(scope="session")
def synthetic_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished synthetic cache of 20 rows in 3 shards; read it, do not write to it."""
    return make_synthetic_cache(
        tmp_path_factory.mktemp("cache") / "synthetic",
        rows=20,
        seq_len=12,
        vocab_size=300,
        top_k=8,
        hidden_size=16,
        rows_per_shard=8,
    )


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture
def s3(s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before an S3 server, where this process' stores look for s3:// URLs, not as patient as a user's."""
    with proxy_before(s3_port) as proxy:
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-caches"))
        monkeypatch.setattr(objects, "PATIENCE", objects.Patience(lease=4.0, silence=5.0, outage=15.0))
        yield proxy


@pytest.fixture
def url() -> str:
    """A place in the bucket where nothing is."""
    return f"s3://{BUCKET}/caches/{uuid.uuid4()}"


@pytest.fixture(autouse=True)
def _forget_warnings_of_other_tests() -> None:
    warnings.resetwarnings()
    warnings.simplefilter("error")


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many faults tests/faults inflicts; `make faults` asks for more."""
    parser.addoption("--kills", type=int, default=30, help="SIGKILLs of a build and of a training run")
    parser.addoption("--flips", type=int, default=400, help="bits flipped, over all objects of a cache")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The demo takes minutes: it starts first, so that the others run beside it and not behind it."""
    items.sort(key=lambda item: item.get_closest_marker("demo") is None)
