"""Text of a file of documentation: HTML by trafilatura, manual pages and POD by their own tools, else as is."""

import gzip
import os
import re
import subprocess
from pathlib import Path

PLAIN, HTML, MAN, POD = "plain", "html", "man", "pod"
ENDINGS = {".html": HTML, ".htm": HTML, ".xhtml": HTML, ".pod": POD, ".txt": PLAIN, ".rst": PLAIN, ".md": PLAIN}
MANUAL_PAGE = re.compile(r"usr/share/man/man\d[^/]*/[^/]+\.\d[a-z0-9]*$")

SHORTEST = 200
"""Characters below which a text is no document."""

SENTENCE_WORDS = 6
SENTENCES = 0.4
"""A text is a list of names when less than this share of its words stands in lines of that many words."""

_MAN_ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "MANWIDTH": "100"}
_ANCHORS = re.compile(r"[ \t]*[¶]+[ \t]*$", re.MULTILINE)
_SPACE_AT_END = re.compile(r"[ \t\r\f\v\u00a0]+$", re.MULTILINE)
_EMPTY_LINES = re.compile(r"\n{3,}")


def kind_of(path: str) -> str | None:
    """How the file of this path in a package is read; None for what is no text, such as pictures and scripts."""
    bare = path.removesuffix(".gz")
    if MANUAL_PAGE.search(bare):
        return MAN
    return ENDINGS.get(Path(bare).suffix)


def text_of(file: Path, kind: str) -> str:
    """Its text, tidied; empty when the file has none, such as a manual page that only names another."""
    data = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
    return tidy(_READERS[kind](data))


def html_text(page: bytes) -> str:
    """The page's main text by trafilatura, as in FineWeb, with two options of its own.

    FineWeb's `favor_precision` loses blocks of code from these pages: about a sixth of their text. `deduplicate`
    remembers earlier pages, so a text would depend on the order of the files.
    """
    import trafilatura

    return trafilatura.extract(page, favor_recall=True, include_comments=False, deduplicate=False) or ""


def man_text(page: bytes) -> str:
    """The page as `man` shows it in 100 columns, neither hyphenated nor justified."""
    if page.lstrip().startswith(b".so "):
        return ""
    return _output(["man", "--no-hyphenation", "--no-justification", "--local-file", "-"], page)


def pod_text(page: bytes) -> str:
    """Perl's documentation as `pod2text` writes it."""
    return _output(["pod2text", "--utf8"], page)


def plain_text(page: bytes) -> str:
    """The file as it is, in UTF-8 or, where it is not that, Latin-1."""
    try:
        return page.decode("utf-8-sig")
    except UnicodeDecodeError:
        return page.decode("latin-1")


def tidy(text: str) -> str:
    """Without carriage returns, spaces at the ends of lines, signs of anchors, and runs of empty lines."""
    text = text.replace("\r\n", "\n").replace("\0", "")
    text = _SPACE_AT_END.sub("", _ANCHORS.sub("", text))
    return _EMPTY_LINES.sub("\n\n", text).strip("\n")


def is_list_of_names(text: str) -> bool:
    """Whether the text is an index or a menu: few of its words stand in lines that could be sentences."""
    counts = [len(line.split()) for line in text.splitlines()]
    return sum(count for count in counts if count >= SENTENCE_WORDS) < SENTENCES * sum(counts)


def _output(command: list[str], page: bytes) -> str:
    done = subprocess.run(command, input=page, capture_output=True, env=_MAN_ENVIRONMENT, check=False)
    return done.stdout.decode(errors="replace")


_READERS = {HTML: html_text, MAN: man_text, POD: pod_text, PLAIN: plain_text}
