"""A page in one file: what its policy allows, and data that cannot leave its element."""

import base64
import hashlib
import json
import re

import pytest

from delta_common.html.markup import Markup
from delta_common.html.page import fill_page, pairs, table

PARTS = ("name", "corpus", "path", "figures", "cut", "temperature", "bytes", "shards", "facts")
NUMBERS = ("lowest", "highest", "chosen")


def page(data: dict[str, object]) -> str:
    parts = {name: Markup(f"<i>{name}</i>") for name in (*PARTS, *NUMBERS)}
    return fill_page("teacher_cache.inspect", "inspect", data=data, **parts)


def test_style_and_script_are_allowed_by_their_digests_and_nothing_else() -> None:
    written = page({})
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', written)
    (style,) = re.findall("<style>(.*?)</style>", written, re.DOTALL)
    for text in (style, *re.findall("<script>(.*?)</script>", written, re.DOTALL)):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "<i>corpus</i>" in written


def test_the_common_style_comes_before_the_pages_own() -> None:
    assert page({}).index(":root") >= 0
    common, own = (text.split("<style>")[1][:40] for text in (page({}), page({"a": 1})))
    assert common == own


def test_data_cannot_end_its_element() -> None:
    said = {"text": "</script><!-- & \u2028 é", "number": 1.5}
    written = page(said)
    assert "</script><!--" not in written
    (embedded,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', written, re.DOTALL)
    assert embedded.isascii()
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == said


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        page({"x": float("nan")})


def test_lists_and_tables_escape_their_words() -> None:
    assert pairs({"<a>": "&"}) == "<dl><div><dt>&lt;a&gt;</dt><dd>&amp;</dd></div></dl>"
    made = table("<t>", ["x", "y"], [["1", "<2>"], ["3", Markup("<b>4</b>")]], "drawn")
    assert "<caption>&lt;t&gt;</caption>" in made
    assert made.count('<th scope="row">') == 2
    assert made.count('<th scope="col">') == 2
    assert "<td>&lt;2&gt;</td>" in made
    assert "<td><b>4</b></td>" in made
    assert 'class="drawn"' in made
