"""`python tools/make_docs_corpus.py OUT` on tiny packages: what is taken, dropped, held out and recorded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest

from teacher_cache.corpus.source import iter_documents
from teacher_cache.settings import CorpusSettings
from tests.helpers import ROOT
from tests.helpers.tool_modules import script
from tests.tools.test_docs_duplicates import text_of

PARTS = ("train", "held_out", "held_out_package")
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg here")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return script("make_docs_corpus")


def deb(folder: Path, name: str, files: dict[str, str]) -> Path:
    """A package of these files below usr/share/doc/NAME."""
    root = folder / name
    for path, text in files.items():
        file = root / "usr/share/doc" / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "DEBIAN").mkdir()
    fields = {"Package": name, "Version": "1.0", "Architecture": "all", "Maintainer": "T <t@e.org>", "Description": "x"}
    (root / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    built = folder / f"{name}_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(root), str(built)], check=True, capture_output=True)
    return built


GUIDE = {f"guide/part{i}.txt": f"Guide to Everything, Version 2.4\n{text_of(i)}\n" for i in range(60)}
GUIDE |= {
    "guide/whole.txt": "\n".join(text_of(i) for i in range(20)),
    "guide/part1-again.txt": text_of(1) + " and more",
    "guide/stub.txt": "See elsewhere.",
    "guide/empty.txt": "",
    "guide/names.txt": "\n".join(f"{word}()" for word in text_of(99).split()),
    "guide/genindex.txt": text_of(100),
    "_sources/part2.txt": text_of(101),
    "guide/part3.md": text_of(102),
    "script.sh": text_of(103),
}
BOOK = {f"html/en-US/chapter{i}.txt": text_of(200 + i) for i in range(4)}
BOOK |= {"html/de-DE/chapter0.txt": text_of(300), "html/en-US/of-the-guide.txt": text_of(5)}


def packages(tool: ModuleType, folder: Path) -> tuple[list[object], dict[str, Path]]:
    debs = {"git-doc": deb(folder, "git-doc", GUIDE), "debian-handbook": deb(folder, "debian-handbook", BOOK)}
    return [tool.Package(name, name, "1.0") for name in debs], debs


@pytest.fixture(scope="module")
def made(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    pytest.importorskip("trafilatura")
    pytest.importorskip("datasketch")
    folder = tmp_path_factory.mktemp("docs")
    return folder, tool.make(*packages(tool, folder), folder)


def rows(folder: Path, part: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = pq.read_table(folder / f"{part}.parquet").to_pylist()
    return found


@needs_dpkg
def test_each_file_is_taken_or_counted_with_its_reason(made: tuple[Path, dict[str, object]]) -> None:
    guide, book = made[1]["packages"]  # type: ignore[misc]
    assert guide["dropped"] == {
        "left out by name": 2,
        "list of names": 1,
        "near duplicate": 1,
        "no text": 1,
        "other format": 1,
        "repeats other pages": 1,
        "short": 1,
    }
    assert (guide["documents"], guide["version"], guide["held_out"]) == (60, "1.0", False)
    assert book["dropped"] == {"exact duplicate": 1, "left out by name": 1}
    assert (book["documents"], book["held_out"]) == (4, True)


@needs_dpkg
def test_documents_are_split_by_id_and_by_package(tool: ModuleType, made: tuple[Path, dict[str, object]]) -> None:
    parts = {part: rows(made[0], part) for part in PARTS}
    assert {row["dump"] for row in parts["held_out_package"]} == {"debian-handbook_1.0"}
    assert {row["dump"] for row in parts["train"] + parts["held_out"]} == {"git-doc_1.0"}
    assert len(parts["train"]) + len(parts["held_out"]) == 60
    for part in ("train", "held_out"):
        assert all(tool.is_held_out(row["id"], tool.HELD_OUT_SHARE) == (part == "held_out") for row in parts[part])
    assert tool.part_of(tool.Package("git-doc", "git-doc", "1.0"), _held_out_id(tool)) == "held_out"
    assert all("Guide to Everything" not in row["text"] for row in parts["train"]), "a line that every page begins with"


def _held_out_id(tool: ModuleType) -> str:
    return next(f"id {i}" for i in range(10_000) if tool.is_held_out(f"id {i}", tool.HELD_OUT_SHARE))


@needs_dpkg
def test_the_same_packages_give_the_same_bytes_and_a_corpus(
    tool: ModuleType, made: tuple[Path, dict[str, object]], tmp_path: Path
) -> None:
    manifest = tool.make(*packages(tool, tmp_path), tmp_path)
    for part in PARTS:
        assert (tmp_path / f"{part}.parquet").read_bytes() == (made[0] / f"{part}.parquet").read_bytes()
    assert manifest["files"] == made[1]["files"]
    json.dumps(manifest)
    documents = list(iter_documents(CorpusSettings(source=str(made[0] / "train.parquet"))))
    assert [document.id for document in documents] == [row["id"] for row in rows(made[0], "train")]
    assert [row["id"] for row in rows(made[0], "train")] != sorted(row["id"] for row in rows(made[0], "train"))


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("usr/share/doc/x/html/page.html", True),
        ("usr/share/doc/x/html/searching-text.html", True),
        ("usr/share/doc/x/html/search.html", False),
        ("usr/share/doc/x/html/qstate-members.html", False),
        ("usr/share/doc/x/api/class-use/State.html", False),
        ("usr/share/doc/x/api/all.html", False),
        ("usr/share/doc/x/api/package-tree.html", False),
        ("usr/share/doc/x/changelog.Debian.gz", False),
        ("usr/share/doc/x/html/allocation.html", True),
        ("usr/share/doc/x/html/indexing.html", True),
    ],
)
def test_navigation_is_left_out_by_its_name(tool: ModuleType, path: str, kept: bool) -> None:
    assert (tool.LEFT_OUT.search(path) is None) == kept


def test_furniture_goes_and_headings_of_manual_pages_stay(tool: ModuleType) -> None:
    package = tool.Package("x", "x", "1")
    pages = [tool.Page(package, f"{i}", "html", f"Top\n\ntext {i}\nThe end of page") for i in range(20)]
    pages += [tool.Page(package, f"m{i}", "man", f"NAME\n page {i}") for i in range(20)]
    texts = [page.text for page in tool.without_furniture(pages)]
    assert texts == [f"text {i}" for i in range(20)] + [f"NAME\n page {i}" for i in range(20)]


def test_a_name_that_stands_for_another_is_followed(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        ("depends", "linux-doc"): "linux-doc\n  Depends: linux-doc-6.1\n",
        ("policy", "linux-doc-6.1"): "linux-doc-6.1:\n  Installed: (none)\n  Candidate: 6.1.192-2\n",
        ("depends", "sphinx-doc"): "sphinx-doc\n  Depends: docutils-doc\n",
        ("policy", "sphinx-doc"): "sphinx-doc:\n  Installed: (none)\n  Candidate: 1:5.3.0\n",
        ("policy", "gap-doc"): "gap-doc:\n  Installed: (none)\n  Candidate: (none)\n",
    }
    monkeypatch.setattr(tool, "_output", lambda _, verb, name: answers.get((verb, name), ""))
    assert tool.offered("linux-doc") == ("linux-doc", "linux-doc-6.1", "6.1.192-2")
    assert tool.offered("sphinx-doc") == ("sphinx-doc", "sphinx-doc", "1:5.3.0")
    assert tool.offered("gap-doc") is None
    assert tool.offered("nowhere-doc") is None


@pytest.mark.parametrize(("needed", "missing"), [("NEEDED_MODULES", "no_such_module"), ("NEEDED_COMMANDS", "no-such")])
def test_what_is_missing_is_one_line(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], needed: str, missing: str
) -> None:
    monkeypatch.setattr(tool, "NEEDED_MODULES", ())
    monkeypatch.setattr(tool, needed, (missing,))
    monkeypatch.setattr(sys, "argv", ["make_docs_corpus.py", "nowhere"])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert missing in printed


def test_a_debian_that_offers_nothing_is_one_line(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "offered", lambda asked: None)
    with pytest.raises(SystemExit):
        tool.packages_here()
    assert "apt-get update" in capsys.readouterr().err


def test_it_runs_as_a_program() -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "tools" / "make_docs_corpus.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "held_out_package.parquet" in done.stdout
