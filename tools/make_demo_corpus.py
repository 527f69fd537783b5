"""Write a real corpus without a network: Python's own documentation, in the schema of FineWeb.

Usage: python tools/make_demo_corpus.py OUT_DIR [--held-out-share 0.1]

A document is one topic of the language reference (pydoc_data.topics) or one public module of the standard library:
its docstring and those of its public classes, functions and methods, read from the source without importing it.
Writes OUT_DIR/train.parquet and OUT_DIR/heldout.parquet; the same Python gives the same bytes.
"""

import argparse
import ast
import hashlib
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
LEFT_OUT = {"antigravity", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo"}
SHORTEST_DOCUMENT = 200

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("id", pa.string()),
        ("dump", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("file_path", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
    ]
)


def module_files() -> Iterator[tuple[str, Path]]:
    """Public modules of the standard library with their source files, by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        if name.startswith("_"):
            continue
        if (root / f"{name}.py").is_file():
            yield name, root / f"{name}.py"
        for path in sorted((root / name).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            inner = [part for part in parts if part != "__init__"]
            if not any(part.startswith("_") or part in {"test", "tests"} for part in inner):
                yield ".".join(inner), path


def module_text(name: str, path: Path) -> str:
    """The module's docstring, then each public name's signature and docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    sections = [f"{name}\n\n{ast.get_docstring(tree) or ''}".rstrip(), *definitions(tree, prefix=f"{name}.")]
    return "\n\n".join(sections)


def definitions(parent: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """Public classes, functions and methods that have a docstring, in the order of the source."""
    for node in parent.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        docstring = ast.get_docstring(node)
        if docstring:
            signature = f"({ast.unparse(node.args)})" if isinstance(node, FUNCTIONS) else ""
            body = "\n".join(f"    {line}".rstrip() for line in docstring.splitlines())
            yield f"{prefix}{node.name}{signature}\n{body}"
        if isinstance(node, ast.ClassDef):
            yield from definitions(node, prefix=f"{prefix}{node.name}.")


def documents() -> Iterator[tuple[str, str, str]]:
    """(url, file path, text) of every document."""
    for topic in sorted(topics):
        yield f"python:topic/{topic}", "pydoc_data/topics.py", inspect.cleandoc(topics[topic])
    for name, path in module_files():
        yield f"python:module/{name}", f"{name.replace('.', '/')}.py", module_text(name, path)


def distinct(found: Iterable[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Each text once: topics such as `if` and `else` share a page, and the two could fall into different parts."""
    first: dict[str, tuple[str, str, str]] = {}
    for document in found:
        first.setdefault(document[2], document)
    return list(first.values())


def record(url: str, file_path: str, text: str) -> dict[str, object]:
    """A row of FineWeb's schema; token_count counts words, since no tokenizer is at hand here."""
    return {
        "text": text,
        "id": f"<urn:sha256:{hashlib.sha256(f'{url} {text}'.encode()).hexdigest()[:32]}>",
        "dump": f"python-{sys.version_info.major}.{sys.version_info.minor}",
        "url": url,
        "date": "",
        "file_path": file_path,
        "language": "en",
        "language_score": 1.0,
        "token_count": len(text.split()),
    }


def is_held_out(identity: str, share: float) -> bool:
    """Split by document, by its identity and not by its place."""
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]) < share * 2**64


def shuffled(records: list[dict[str, object]]) -> list[dict[str, object]]:
    """In the order of the identities' digests, so that any beginning of the corpus mixes all of it."""
    return sorted(records, key=lambda r: hashlib.sha256(str(r["id"]).encode()).digest())


def write(path: Path, records: list[dict[str, object]]) -> None:
    """One Parquet file with fixed writer settings."""
    table = pa.Table.from_pylist(shuffled(records), schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", row_group_size=256)


def main() -> None:
    """Write both parts and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for train.parquet and heldout.parquet")
    parser.add_argument("--held-out-share", type=float, default=0.1, help="share of documents held out")
    arguments = parser.parse_args()
    records = [record(*document) for document in distinct(documents()) if len(document[2]) >= SHORTEST_DOCUMENT]
    held_out = [r for r in records if is_held_out(str(r["id"]), arguments.held_out_share)]
    train = [r for r in records if not is_held_out(str(r["id"]), arguments.held_out_share)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", train), ("heldout", held_out)):
        path = arguments.out / f"{name}.parquet"
        write(path, part)
        characters = sum(len(str(r["text"])) for r in part)
        print(f"{path}: {len(part)} documents, {characters:,} characters")


if __name__ == "__main__":
    main()
