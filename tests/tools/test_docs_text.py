"""The text of tiny pages of each kind, as the corpus of Debian's documentation takes it."""

import gzip
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.tool_modules import script

PROSE = "The recurrence keeps a state of constant size however long the text before it becomes. " * 4


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    return script("docs_text")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("usr/share/doc/x/html/page.html", "html"),
        ("usr/share/doc/x/guide.txt.gz", "plain"),
        ("usr/share/doc/x/guide.rst", "plain"),
        ("usr/share/man/man3/File::Find.3perl.gz", "man"),
        ("usr/share/man/man2/open.2", "man"),
        ("usr/share/perl/5.36.0/pod/perlfaq.pod", "pod"),
        ("usr/share/doc/x/example.3", None),
        ("usr/share/doc/x/picture.png", None),
        ("usr/share/doc/x/copyright", None),
    ],
)
def test_the_path_says_how_a_file_is_read(docs: ModuleType, path: str, kind: str | None) -> None:
    assert docs.kind_of(path) == kind


def test_html_loses_its_navigation_and_anchors(docs: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    file = tmp_path / "page.html"
    file.write_text(
        f"<html><head><title>State</title></head><body><nav><ul><li><a href='a'>Previous chapter</a></li></ul></nav>"
        f"<article><h1>State<a href='#s'>¶</a></h1><p>{PROSE}</p>"
        f"<div><pre>keep(state);</pre></div><p>{PROSE[:87]}</p></article></body></html>"
    )
    text = docs.text_of(file, "html")
    assert PROSE.strip() in text
    assert "keep(state);" in text
    assert "Previous chapter" not in text
    assert "¶" not in text


def test_a_page_of_html_does_not_depend_on_those_before_it(docs: ModuleType) -> None:
    pytest.importorskip("trafilatura")
    page = f"<html><body><article><p>{PROSE}</p></article></body></html>".encode()
    assert docs.html_text(page) == docs.html_text(page) == docs.html_text(page) != ""


def test_a_manual_page_is_read_as_man_shows_it(docs: ModuleType, tmp_path: Path) -> None:
    if shutil.which("man") is None:
        pytest.skip("no man here")
    file = tmp_path / "keep.1.gz"
    source = f'.TH KEEP 1 2024 "Tools"\n.SH NAME\nkeep \\- keep a state\n.SH DESCRIPTION\n.B keep\n{PROSE}\n'
    file.write_bytes(gzip.compress(source.encode()))
    text = docs.text_of(file, "man")
    assert "keep - keep a state" in text
    assert "\b" not in text
    assert " ".join(text.split()).count(PROSE.strip()) == 1, "neither hyphenated nor cut"
    assert max(map(len, text.splitlines())) <= 100


def test_a_manual_page_that_only_names_another_has_no_text(docs: ModuleType) -> None:
    assert docs.man_text(b".so man3/keep.3\n") == ""


def test_pod_becomes_text(docs: ModuleType) -> None:
    if shutil.which("pod2text") is None:
        pytest.skip("no pod2text here")
    text = docs.pod_text("=encoding utf8\n\n=head1 NAME\n\nkeep - C<keep> a state, naïvely\n\n=cut\n".encode())
    assert text.split("\n") == ["NAME", '    keep - "keep" a state, naïvely', "", ""]


def test_plain_text_is_utf8_or_else_latin_1(docs: ModuleType) -> None:
    assert docs.plain_text(b"\xef\xbb\xbfna\xc3\xafve") == "naïve"
    assert docs.plain_text(b"na\xefve") == "naïve"


def test_tidy_takes_what_no_reader_sees(docs: ModuleType) -> None:
    assert docs.tidy("\n\nTitle¶\r\n\n\n\n\n    code  \nend\0\n\n") == "Title\n\n    code\nend"


def test_an_index_is_a_list_of_names_and_prose_is_not(docs: ModuleType) -> None:
    assert docs.is_list_of_names("\n".join(f"- QState{i}::value" for i in range(50)))
    assert not docs.is_list_of_names("Synopsis\n\n" + PROSE)
