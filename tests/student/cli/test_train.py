"""`student-train` without training: where it writes, which files it finds, and disks that are full."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from delta_common.errors import UserError
from student.cli import train as module
from student.settings import TrainSettings
from student.train import job, processes


class Asked(list[tuple[TrainSettings, str | None, Path]]):
    """What would have been trained, with the error to raise in its place."""

    error: OSError | None = None
    init_from: Path | None = None


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    given = Asked()

    @contextmanager
    def joined_processes() -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(rank=1)

    def run_job(settings: TrainSettings, cache: str | None, out: Path, joined: object, init_from: Path | None) -> None:
        given.append((settings, cache, out))
        given.init_from = init_from
        if given.error is not None:
            raise given.error

    monkeypatch.setattr(processes, "joined_processes", joined_processes)
    monkeypatch.setattr(job, "run_job", run_job)
    return given


def run(*words: Path | str) -> int:
    code = module.app([str(word) for word in words], result_action="return_value", exit_on_error=False)
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize(
    ("cache", "name"), [("caches/small", "small"), ("caches/small/", "small"), ("s3://bucket/prefix/big/", "big")]
)
def test_a_run_is_named_after_its_cache(asked: Asked, cache: str, name: str) -> None:
    assert run("--cache", cache) == 0
    ((_, said, out),) = asked
    assert (said, out) == (cache, Path("runs") / name)


def test_several_caches_have_shares_and_a_run_named_after_all(asked: Asked) -> None:
    words = ["--cache", "caches/a=0.7", "--cache", "s3://bucket/b/=0.3", "--caches.1.distillation.alpha_init", "0.6"]
    assert run(*words) == 0
    ((settings, said, out),) = asked
    assert (said, out) == (None, Path("runs/a+b"))
    assert [(cache.path, cache.share) for cache in settings.caches] == [("caches/a", 0.7), ("s3://bucket/b/", 0.3)]
    assert [settings.distillation_of(number).alpha_init for number in (0, 1)] == [0.8, 0.6]


def test_caches_may_be_listed_in_the_settings(asked: Asked, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("caches: [{path: a}, {path: b}]\n")
    assert run("--config", config) == 0
    assert run("--config", config, "--cache", "c") == 0
    assert run("--config", config, "--cache", "c", "--cache", "d") == 0
    assert [(said, out.name) for _, said, out in asked] == [(None, "a+b"), ("c", "c"), (None, "c+d")]


def test_a_folder_may_be_called_like_a_share(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=0.3").mkdir()
    for words in ("lr=0.3", "x=y", "a=0.5"):
        assert run("--cache", words) == 0
    assert [said for _, said, _ in asked] == ["lr=0.3", "x=y", "a"]


def test_settings_come_from_the_file_and_the_command_line(asked: Asked, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("training: {epochs: 3}\noptimizer: {learning_rate: 0.5}\n")
    assert run("--cache", "c", "--config", config, "--out", "o", "--optimizer.learning-rate", "0.25") == 0
    ((settings, _, out),) = asked
    assert (settings.training.epochs, settings.optimizer.learning_rate, out) == (3, 0.25, Path("o"))


@pytest.mark.parametrize("is_beside", [True, False])
def test_a_deepspeed_file_is_looked_for_beside_the_settings_first(
    asked: Asked, tmp_path: Path, is_beside: bool
) -> None:
    (tmp_path / "c.yaml").write_text("deepspeed: zero.json\n")
    if is_beside:
        (tmp_path / "zero.json").write_text("{}")
    assert run("--cache", "c", "--config", tmp_path / "c.yaml") == 0
    assert asked[0][0].deepspeed == (tmp_path / "zero.json" if is_beside else Path("zero.json"))


def test_checkpoints_need_a_local_folder(asked: Asked) -> None:
    with pytest.raises(UserError, match="--out s3:/b/c: checkpoints are written to a local folder; give a local path"):
        run("--cache", "c", "--out", "s3://b/c")
    assert asked == []


def test_a_full_disk_is_said_in_one_sentence(asked: Asked) -> None:
    asked.error = OSError(errno.ENOSPC, "No space left on device", "there/file")
    with pytest.raises(UserError, match=r"there/file: cannot be written \(No space left on device\); make room"):
        run("--cache", "c")


def test_other_errors_of_the_system_stay_what_they_are(asked: Asked) -> None:
    asked.error = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        run("--cache", "c")


def test_help_lists_every_setting_with_its_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["student-train", "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(module.app, "help_epilogue", None)
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert not stop.value.code
    said = capsys.readouterr().out
    assert "--training.epochs" in said
    assert "--evaluation.cache" in said


def test_the_settings_in_force_are_printed_and_nothing_is_trained(
    asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--show-config", "--training.epochs", "3") == 0
    assert "epochs: 3\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="--cache is missing"):
        run("--training.epochs", "3")
    assert asked == []


def test_a_run_may_begin_from_another(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("--cache", "c", "--init-from", "~/runs/first") == 0
    assert asked.init_from == tmp_path / "runs/first"
    assert run("--cache", "c") == 0
    assert asked.init_from is None


def test_a_home_folder_is_found(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "zero.json").write_text("{}")
    assert run("--cache", "c", "--out=~/run", "--deepspeed", "~/zero.json") == 0
    assert (asked[0][0].deepspeed, asked[0][2]) == (tmp_path / "zero.json", tmp_path / "run")
