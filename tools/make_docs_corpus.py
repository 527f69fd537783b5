"""Write a corpus of about 57 million tokens that anybody can make on Debian: its documentation packages as text.

Usage: python tools/make_docs_corpus.py OUT_FOLDER

Downloads the packages (run `apt-get update` first), unpacks them without installing anything, extracts the text of each
page, and drops indices, duplicates and near duplicates. Writes into OUT_FOLDER, with FineWeb's columns: train.parquet;
held_out.parquet, documents of the same packages; held_out_package.parquet, of packages that train.parquet has nothing
of; and manifest.json, which names packages, versions and what was dropped. Any beginning of a file is a fair sample of
it. The same packages and versions of the tools give the same bytes.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import Pool
from multiprocessing.pool import Pool as PoolType
from pathlib import Path
from typing import NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from docs_duplicates import Distinct, fingerprint
from docs_text import HTML, MAN, PLAIN, POD, SHORTEST, is_list_of_names, kind_of, text_of
from make_demo_corpus import SCHEMA, is_held_out, shuffled

NEEDED_MODULES = ("trafilatura", "lxml_html_clean", "datasketch")
NEEDED_COMMANDS = ("apt-cache", "apt-get", "dpkg", "man", "pod2text")

PACKAGES = {
    "apache2-doc": "/manual/en/",
    "autoconf-doc": r"\.html$",
    "bash-doc": r"\.html$",
    "bind9-doc": "",
    "cmake-doc": "",
    "debian-handbook": "/html/en-US/",
    "debian-policy": r"\.html$",
    "debian-reference-en": r"\.html$",
    "default-jdk-doc": "",
    "developers-reference": r"\.html$",
    "erlang-manpages": "",
    "gap-doc": "",
    "git-doc": "",
    "glibc-doc": "",
    "gnuplot-doc": "",
    "libboost-doc": "",
    "libglib2.0-doc": "",
    "libgtk-3-doc": "",
    "libreoffice-help-en-us": "",
    "linux-doc": r"/html/|/Documentation/.*\.txt",
    "manpages": "",
    "manpages-dev": "",
    "maxima-doc": "",
    "nodejs-doc": "",
    "octave-doc": "",
    "perl-doc": "",
    "postgis-doc": "",
    "postgresql-doc": "",
    "python3-doc": "",
    "python-django-doc": "",
    "python-pandas-doc": "",
    "python-scipy-doc": "",
    "python-sqlalchemy-doc": r"\.html$",
    "python-sympy-doc": "",
    "qtbase5-doc-html": "",
    "r-doc-html": "",
    "rust-doc": "/html/(?!core/)",
    "sphinx-doc": r"\.html$",
    "sqlite3-doc": "",
    "tcl8.6-doc": "",
    "vim-doc": "",
    "zsh-doc": "",
}
"""Packages, and a pattern of the paths to take; empty for all. Of a book in several formats the pages are taken."""

STANDING_FOR_OTHERS = ("default-jdk-doc", "libboost-doc", "linux-doc", "postgresql-doc", "python3-doc")
"""Packages without files, which depend on the one of this Debian's version."""

HELD_OUT_PACKAGES = ("debian-handbook", "sqlite3-doc")
"""A book and a reference manual: the second held-out set."""

HELD_OUT_SHARE = 0.01

LEFT_OUT = re.compile(
    r"/(_sources|_modules|_static|translations|class-use|index-files|examples?|src|source)/"
    r"|[/-](genindex|genindex-\w+|index-all|search|all|contents|allclasses-index|allpackages-index|constant-values"
    r"|deprecated-list|help-doc|perltoc|overview-tree|package-tree|package-use|serialized-form|py-modindex|members|obsolete)"
    r"\.(html?|txt|rst|md|pod)$"
    r"|/(copyright|changelog|credits|maintainers|readme\.debian|news\.debian)(\.[^/]*)?$",
    re.IGNORECASE,
)
"""Navigation, indices, copies and sources of pages, and papers of the package itself."""

EDGE_LINES, EDGE_SHARE, EDGE_LEAST = 4, 0.2, 10
"""A line is dropped from a page's first or last four when a fifth of a package's pages, at least ten, have it there."""

FORMATS = (POD, HTML, MAN, PLAIN)
"""Of one page in two formats the first of these is taken."""
PROCESSES = 2


class Package(NamedTuple):
    """A package of the corpus as this Debian has it."""

    asked: str
    name: str
    version: str


class Page(NamedTuple):
    """The text of one file of a package."""

    package: Package
    path: str
    kind: str
    text: str


def offered(asked: str) -> Package | None:
    """The package of this name, or the documentation that it stands for; None when this Debian has none."""
    depends = _output("apt-cache", "depends", asked) if asked in STANDING_FOR_OTHERS else ""
    found = re.search(r"^ +Depends: (\S+-doc(?:-[\d.]+)?)$", depends, re.MULTILINE)
    name = found.group(1) if found else asked
    candidate = re.search(r"^ +Candidate: (\d\S*)$", _output("apt-cache", "policy", name), re.MULTILINE)
    return Package(asked, name, candidate.group(1)) if candidate else None


def downloaded(packages: list[Package], folder: Path) -> dict[str, Path]:
    """The packages' files in `folder`, by name of the package; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{package.name}={package.version}" for package in packages]
    done = subprocess.run(
        [_command("apt-get"), "download", *names], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        stop(f"apt-get download failed ({said[-1]}); run apt-get update, then this again")
    return {package.name: _deb(folder, package) for package in packages}


def _deb(folder: Path, package: Package) -> Path:
    [file] = folder.glob(f"{package.name}_{package.version.replace(':', '%3a')}_*.deb")
    return file


def _command(name: str) -> str:
    return shutil.which(name) or name


def _output(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment).stdout


def files_of(root: Path, wanted: str, dropped: Counter[str]) -> Iterator[tuple[Path, str]]:
    """Text files below `root` and how each is read; of a page in two formats the first of FORMATS."""
    paths = [str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and not file.is_symlink()]
    kinds = {path: kind for path in sorted(paths) if (kind := kind_of(path)) is not None}
    taken = set()
    for path, kind in sorted(kinds.items(), key=lambda item: FORMATS.index(item[1])):
        page = path.removesuffix(".gz").rpartition(".")[0] if kind != MAN else path
        if LEFT_OUT.search(path.removesuffix(".gz")) or not re.search(wanted, path):
            dropped["left out by name"] += 1
        elif page in taken:
            dropped["other format"] += 1
        else:
            taken.add(page)
            yield root / path, kind


def pages_of(package: Package, deb: Path, pool: PoolType, dropped: Counter[str]) -> list[Page]:
    """All pages of the package with their texts, without what a fifth of them begins or ends with."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([_command("dpkg"), "-x", str(deb), folder], check=True)
        files = list(files_of(Path(folder), PACKAGES[package.asked], dropped))
        texts = pool.starmap(text_of, files, chunksize=8)
        paths = [str(file.relative_to(folder)) for file, _ in files]
    pages = [Page(package, path, kind, text) for path, (_, kind), text in zip(paths, files, texts, strict=True)]
    return without_furniture(pages)


def without_furniture(pages: list[Page]) -> list[Page]:
    """The pages of one package without the lines that many begin or end with; manual pages keep their headings."""
    edges = Counter(line for page in pages if page.kind in (HTML, PLAIN) for line in set(_edges(page.text)))
    least = max(EDGE_LEAST, EDGE_SHARE * len(pages))
    furniture = {line for line, count in edges.items() if line and count >= least}
    return [page._replace(text=_stripped(page.text, furniture)) for page in pages]


def _edges(text: str) -> list[str]:
    lines = text.splitlines()
    return [line.strip() for line in lines[:EDGE_LINES] + lines[-EDGE_LINES:]]


def _stripped(text: str, furniture: set[str]) -> str:
    lines = text.splitlines()
    while lines and (not lines[0].strip() or lines[0].strip() in furniture):
        lines.pop(0)
    while lines and (not lines[-1].strip() or lines[-1].strip() in furniture):
        lines.pop()
    return "\n".join(lines)


def fault(text: str) -> str | None:
    """Why the text is no document, in the words of the manifest."""
    if not text:
        return "no text"
    if len(text) < SHORTEST:
        return "short"
    return "list of names" if is_list_of_names(text) else None


def documents_of(pages: list[Page], known: Distinct, pool: PoolType, dropped: Counter[str]) -> list[Page]:
    """The pages of one package that are documents and repeat none before them; the others are counted by their fault.

    The shortest come first, so that of a book in many pages and in one the many stay.
    """
    readable = [page for page in sorted(pages, key=lambda page: len(page.text)) if _counted(fault(page.text), dropped)]
    prints = pool.imap(fingerprint, [page.text for page in readable], chunksize=8)
    known.next_package()
    return [
        page for page, found in zip(readable, prints, strict=True) if _counted(known.fault(page.text, *found), dropped)
    ]


def _counted(reason: str | None, dropped: Counter[str]) -> bool:
    """Whether there is no reason to drop a page; counts the reason."""
    if reason is not None:
        dropped[reason] += 1
    return reason is None


def record(page: Page) -> dict[str, object]:
    """A row of FineWeb's schema. The id is of package and path, so that a new version splits alike."""
    url = f"debian:{page.package.name}/{page.path}"
    return {
        "text": page.text,
        "id": f"<urn:sha256:{hashlib.sha256(url.encode()).hexdigest()[:32]}>",
        "dump": f"{page.package.name}_{page.package.version}",
        "url": url,
        "date": "",
        "file_path": page.path,
        "language": "en",
        "language_score": 1.0,
        "token_count": len(page.text.split()),
    }


def part_of(package: Package, identity: str) -> str:
    """The file that a document goes into."""
    if package.asked in HELD_OUT_PACKAGES:
        return "held_out_package"
    return "held_out" if is_held_out(identity, HELD_OUT_SHARE) else "train"


def write(path: Path, records: list[dict[str, object]]) -> dict[str, object]:
    """One Parquet file with fixed writer settings; what the manifest says of it."""
    table = pa.Table.from_pylist(shuffled(records), schema=SCHEMA)
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, compression="zstd", compression_level=15, row_group_size=256)
    partial.replace(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "documents": len(records),
        "characters": _characters(records),
        "bytes": path.stat().st_size,
        "sha256": digest,
    }


def _characters(records: list[dict[str, object]]) -> int:
    return sum(len(str(record["text"])) for record in records)


def make(packages: list[Package], debs: dict[str, Path], out: Path) -> dict[str, object]:
    """Write the three parts of the corpus; return the manifest."""
    parts: dict[str, list[dict[str, object]]] = {"train": [], "held_out": [], "held_out_package": []}
    described, known = [], Distinct()
    with Pool(PROCESSES) as pool:
        for package in packages:
            dropped: Counter[str] = Counter()
            pages = pages_of(package, debs[package.name], pool, dropped)
            records = [record(page) for page in documents_of(pages, known, pool, dropped)]
            for row in records:
                parts[part_of(package, str(row["id"]))].append(row)
            described.append(_description(package, debs[package.name], records, dropped))
            print(f"{package.name} {package.version}: {len(records):,} documents, {_characters(records):,} characters")
    files = {f"{name}.parquet": write(out / f"{name}.parquet", rows) for name, rows in parts.items()}
    return {"tools": {name: version(name) for name in NEEDED_MODULES}, "files": files, "packages": described}


def _description(
    package: Package, deb: Path, records: list[dict[str, object]], dropped: Counter[str]
) -> dict[str, object]:
    return {
        "package": package.name,
        "version": package.version,
        "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(),
        "held_out": package.asked in HELD_OUT_PACKAGES,
        "documents": len(records),
        "characters": _characters(records),
        "dropped": dict(sorted(dropped.items())),
    }


def stop(why: str) -> NoReturn:
    """One line, and the exit code of a mistake that the user can mend."""
    print(f"make_docs_corpus.py: {why}", file=sys.stderr)
    sys.exit(2)


def check_needed() -> None:
    """Stop with one line when a package or a command is missing."""
    modules = [name for name in NEEDED_MODULES if find_spec(name) is None]
    if modules:
        stop(f"not installed: {', '.join(modules)}; run pip install {' '.join(modules)}")
    commands = [name for name in NEEDED_COMMANDS if shutil.which(name) is None]
    if commands:
        stop(f"no such command: {', '.join(commands)}; this runs on Debian, with man-db and perl installed")


def packages_here() -> tuple[list[Package], list[str]]:
    """The packages that this Debian offers, and the names of those that it does not."""
    found = {asked: offered(asked) for asked in PACKAGES}
    packages = [package for package in found.values() if package is not None]
    if not packages:
        stop("apt knows none of the packages; run apt-get update, then this again")
    return packages, [asked for asked, package in found.items() if package is None]


def main() -> None:
    """Make the corpus and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the corpus; the packages stay in its folder packages")
    out = parser.parse_args().out
    check_needed()
    packages, absent = packages_here()
    if absent:
        print(f"left out, for this Debian does not have them: {', '.join(absent)}", file=sys.stderr)
    manifest = make(packages, downloaded(packages, out / "packages"), out)
    (out / "manifest.json").write_text(json.dumps({**manifest, "not_offered": absent}, indent=2) + "\n")
    for name, part in manifest["files"].items():
        print(f"{out / name}: {part['documents']:,} documents, {part['characters']:,} characters")


if __name__ == "__main__":
    main()
