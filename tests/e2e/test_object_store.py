"""Build, inspect, verify, repair and training with the cache in an object store, against a server on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from delta_common.errors import UserError
from student.cli import train as student_cli
from student.data.feed import batches_ahead
from student.data.order import BatchReader
from teacher_cache.build.job import build
from teacher_cache.build.synthetic import SyntheticSettings, SyntheticTeacher, make_synthetic_cache
from teacher_cache.build.writer import CacheWriter
from teacher_cache.cli import app
from teacher_cache.format.errors import CacheError
from teacher_cache.read.cache import open_cache
from teacher_cache.settings import BuildSettings
from teacher_cache.store.open import open_store
from tests.helpers.damageable import SIZES, contents, stored
from tests.helpers.e2e_corpus import write_text_corpus
from tests.helpers.object_server import Fault, Proxy, Request

SHARDS = 5
BUILDER = """
from teacher_cache import cli
from teacher_cache.store import objects
objects.PATIENCE = objects.Patience(lease=4.0, silence=10.0)
cli.main()
"""
"""`teacher-cache` whose leases are as short as those of the process that runs the tests."""
STUDENTS = """
import json, sys
from student.cli import train
for arguments in json.loads(sys.argv[1]):
    train.app(arguments, result_action="return_value")
"""


@pytest.fixture(scope="module")
def config(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("object-store")
    settings = {
        "teacher": {"model": str(tiny_teacher)},
        "corpus": {"source": str(write_text_corpus(folder))},
        "rows": {"seq_len": 32, "count": 8 * SHARDS - 3},
        "targets": {"top_k": 16},
        "compute": {"batch_size": 4, "rows_per_shard": 8},
    }
    path = folder / "build.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def settings(config: Path) -> BuildSettings:
    return BuildSettings.model_validate(yaml.safe_load(config.read_text()))


@pytest.fixture(scope="module")
def local(settings: BuildSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cache in a folder."""
    path = tmp_path_factory.mktemp("local") / "cache"
    build(settings, path)
    return path


def run(*arguments: str) -> int:
    code = app(list(arguments), result_action="return_value")
    assert isinstance(code, int)
    return code


def test_the_bytes_are_those_of_a_local_build(
    s3: Proxy, url: str, config: Path, local: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("build", str(config), "--out", url) == 0
    assert f"{url}: {SHARDS} shards built" in capsys.readouterr().out
    assert stored(url) == contents(local)
    assert open_store(url).names(".locks") == set()
    before = s3.count("PUT")
    assert run("build", str(config), "--out", url) == 0
    assert "nothing left to build" in capsys.readouterr().out
    assert s3.count("PUT") == before
    assert run("inspect", url, "--json") == 0
    ours = json.loads(capsys.readouterr().out)
    assert run("inspect", str(local), "--json") == 0
    theirs = json.loads(capsys.readouterr().out)
    assert ours.pop("path") == url
    assert theirs.pop("path") == str(local)
    assert ours == theirs
    assert run("inspect", url, "--row", "3", "--tokens", "0:4") == 0


def test_a_killed_build_continues_with_the_same_bytes(
    s3: Proxy, url: str, config: Path, settings: BuildSettings, local: Path
) -> None:
    with start_builder(config, url) as process:

        def kill_in_shard_2(request: Request) -> None:
            if request.method == "PUT" and request.key.endswith("logits/ids/c/2/0/0"):
                process.kill()
                process.wait()

        s3.fault = kill_in_shard_2
        process.wait()
    s3.fault = lambda request: None
    assert sorted(open_cache(url, allow_unfinished=True).commits) == [0, 1]
    locks = open_store(url).names(".locks")
    assert {"shard-00002"} <= locks <= {"shard-00002", "shard-00003"}  # the one written, and the one computed meanwhile
    report = build(settings, url)
    assert (report.shards_built, report.shards_found, report.shards_elsewhere) == (3, 2, 0)
    assert stored(url) == contents(local)


def start_builder(config: Path, url: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", BUILDER, "build", str(config), "--out", url]
    as_here = {**os.environ, "OMP_NUM_THREADS": "1"}  # records name the number of threads
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=as_here)


def test_two_builders_at_once_share_the_shards(
    s3: Proxy, url: str, config: Path, settings: BuildSettings, local: Path
) -> None:
    is_at_shard_2 = threading.Event()

    def slow_at_shard_2(request: Request) -> Fault | None:
        if request.method == "PUT" and request.key.endswith("tokens/c/2/0"):
            is_at_shard_2.set()
            return Fault(delay=4.5)  # longer than a lease, which is renewed meanwhile
        return None

    s3.fault = slow_at_shard_2
    with start_builder(config, url) as process:
        assert is_at_shard_2.wait(100)
        report = build(settings, url)
        assert process.wait(100) == 0
    assert report.shards_found == 2
    # The other builder has the shard it writes, and maybe the one that it computes meanwhile.
    assert (report.shards_built, report.shards_elsewhere) in [(2, 1), (1, 2)]
    assert s3.count("PUT", "tokens/c/") == SHARDS, "a shard was made twice"
    assert stored(url) == contents(local)
    assert open_store(url).names(".locks") == set()


def test_damage_is_found_put_aside_and_repaired(
    s3: Proxy, url: str, config: Path, settings: BuildSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    build(settings, url)
    sound, key = stored(url), "logits/values/c/1/0/0"
    damaged = sound[key][:100] + bytes([sound[key][100] ^ 4]) + sound[key][101:]
    store = open_store(url)
    store.publish(key, damaged)
    store.remove("tokens/c/3/0")
    assert run("verify", url, "--json") == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert {(fault["kind"], fault["key"]) for fault in faults} == {("digest", key), ("missing", "tokens/c/3/0")}
    with pytest.raises(CacheError, match=f"{url}/{key}: its bytes are not those that were written"):
        open_cache_leniently(url).rows(range(8, 16))
    assert run("repair", url, "--config", str(config)) == 0
    assert "2 shards built again" in capsys.readouterr().out
    assert stored(url) == sound
    assert store.read(f".quarantine/0001/{key}") == damaged
    assert run("verify", url, "--deep") == 0


def open_cache_leniently(url: str) -> Any:
    """A cache with a shard lost, which `open_cache` refuses: the lost shard is forgotten first."""
    store = open_store(url)
    store.move("commits/00003.json", ".aside/commits/00003.json")
    cache = open_cache(url, allow_unfinished=True)
    store.move(".aside/commits/00003.json", "commits/00003.json")
    return cache


def test_a_shard_is_read_with_one_request_an_object(s3: Proxy, url: str, tmp_path: Path) -> None:
    sizes = {**SIZES, "rows": 96, "rows_per_shard": 32}
    make_synthetic_cache(url, **sizes)
    cache, same = open_cache(url), open_cache(make_synthetic_cache(tmp_path / "local", **sizes))
    assert cache.manifest.rows.rows_per_chunk < 32
    objects = {key for commit in cache.commits.values() for key in commit.objects}
    prefix = url.removeprefix("s3://bucket/")
    for epoch in range(2):
        readers = [BatchReader(opened, seed=1, global_batch=8) for opened in (cache, same)]
        steps = range(epoch * readers[0].batches_per_epoch, (epoch + 1) * readers[0].batches_per_epoch)
        s3.requests.clear()
        with batches_ahead(readers[:1], steps, lambda parts: parts[0]) as feed:
            for step, ours in zip(steps, feed, strict=True):
                for name, column in readers[1].read(step).arrays.items():
                    assert np.array_equal(column, ours.arrays[name]), name
        assert Counter(request.key.removeprefix(f"{prefix}/") for request in s3.requests) == Counter(objects)


def test_what_must_be_a_file_is_fetched_once_and_held_to_its_digest(s3: Proxy, url: str) -> None:
    make_synthetic_cache(url, **SIZES)
    cache = open_cache(url)
    path = cache.frozen_weights
    assert path.read_bytes() == open_store(url).read("teacher/frozen.safetensors")
    assert cache.fingerprint in path.parts
    s3.requests.clear()
    assert cache.frozen_weights == path
    assert s3.requests == []
    path.write_bytes(path.read_bytes()[:-1])
    assert open_cache(url).frozen_weights.read_bytes() == open_store(url).read("teacher/frozen.safetensors")
    path.unlink()
    open_store(url).publish("teacher/frozen.safetensors", b"something else")
    with pytest.raises(CacheError, match=r"frozen\.safetensors: its bytes are not those that were written"):
        _ = open_cache(url).frozen_weights
    assert not path.exists()


def test_a_tokenizer_is_fetched_too(s3: Proxy, url: str, settings: BuildSettings, local: Path) -> None:
    build(settings, url)
    folder = open_cache(url).tokenizer_folder
    assert folder is not None
    fetched = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert fetched == {path.name: path.read_bytes() for path in (local / "teacher/tokenizer").iterdir()}


def test_a_student_trains_from_a_url_as_from_a_folder(s3: Proxy, url: str, tmp_path: Path) -> None:
    sizes = {"rows": 16, "seq_len": 12, "vocab_size": 64, "top_k": 8, "hidden_size": 32, "rows_per_shard": 8}
    make_synthetic_cache(url, **sizes)
    make_synthetic_cache(tmp_path / "local", **sizes)
    small = ["--model.blocks=2", "--model.heads=4", "--model.qkv_block_size=4", "--training.max_steps=2"]
    small += ["--training.micro_batch_size=2", "--training.gradient_accumulation=2", "--training.checkpoint_every=2"]
    places = {"url": url, "folder": str(tmp_path / "local")}
    commands = [
        ["--cache", cache, "--evaluation.cache", cache, "--out", str(tmp_path / name), *small]
        for name, cache in places.items()
    ]
    command = [sys.executable, "-c", STUDENTS, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = ("trained.safetensors", "evaluation.jsonl")
    trained = {name: [(tmp_path / name / file).read_bytes() for file in files] for name in places}
    assert trained["url"] == trained["folder"]
    assert s3.count("GET", "hidden/mean/c/") > 0


def test_a_students_folder_is_local_and_named_after_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="checkpoints are written to a local folder; give a local path"):
        student_cli.train(cache=["s3://bucket/cache"], out=Path("s3://bucket/run"))
    folders = []
    monkeypatch.setattr(student_cli, "_run", lambda settings, cache, out, init_from: folders.append(out))
    student_cli.train(cache=["s3://bucket/caches/paper/"])
    student_cli.train(cache=["caches/paper"])
    assert folders == [Path("runs/paper")] * 2


def test_a_second_builder_of_the_same_shard_finds_it_done_or_says_that_it_differs(s3: Proxy, url: str) -> None:
    settings = SyntheticSettings(rows=8, seq_len=6, vocab_size=120, top_k=3, samples=6, hidden_size=16)
    teacher = SyntheticTeacher(settings)
    make_synthetic_cache(url, **vars(settings))
    commit = open_store(url).read("commits/00000.json")
    cache, frozen = open_cache(url), "teacher/frozen.safetensors"
    writer = CacheWriter.open(open_store(url), cache.manifest, {frozen: open_store(url).read(frozen)})
    arrays, statistics = teacher.shard(cache.manifest, range(8))
    writer.write_shard(0, arrays.by_name, statistics.sums, {"torch": "another"})
    assert open_store(url).read("commits/00000.json") == commit, "the first record stays"
    other = {**arrays.by_name, "tokens": arrays.tokens + 1}
    with pytest.raises(CacheError, match=r"commits/00000\.json: another builder has made this shard with other bytes"):
        writer.write_shard(0, other, statistics.sums, {})


def test_other_content_and_other_settings_are_refused(s3: Proxy, url: str) -> None:
    open_store(url).publish("holiday/photo.jpg", b"sun")
    with pytest.raises(CacheError, match=f"{url}: a folder with other content; choose another --out"):
        make_synthetic_cache(url, **SIZES)
    with pytest.raises(CacheError, match=f"{url}/elsewhere: no such folder"):
        open_cache(f"{url}/elsewhere")
    make_synthetic_cache(f"{url}/cache", **SIZES)
    with pytest.raises(CacheError, match=r"holds a cache made otherwise: targets\.top_k"):
        make_synthetic_cache(f"{url}/cache", **{**SIZES, "top_k": 4})
