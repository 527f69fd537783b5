"""Pages for a browser that need no network, and in which no text from outside can act."""

import base64
import hashlib
import json
from importlib.resources import files
from string import Template
from typing import Any

from delta_common.html.markup import Markup, element


def fill_page(package: str, page: str, /, *, data: dict[str, Any], **parts: Markup | str) -> str:
    """The page `pages/PAGE.html` of a package as one file: with its style behind the common one, script and data.

    Parts stand where the template says `$part`; what is not `Markup` there must be escaped already.
    """
    style = _read("delta_common.html", "page.css") + _read(package, f"{page}.css")
    script = _read(package, f"{page}.js")
    policy = _policy(style, script)
    template = Template(_read(package, f"{page}.html"))
    return template.substitute(policy=policy, style=style, script=script, data=_embedded(data), **parts)


def pairs(facts: dict[str, str], class_: str | None = None) -> Markup:
    """A description list."""
    entries = (element("div", element("dt", name), element("dd", words)) for name, words in facts.items())
    return element("dl", *entries, class_=class_)


def table(caption: str, headings: list[str], rows: list[list[str]], class_: str | None = None) -> Markup:
    """A table; the first cell of a row is its heading. Of class `drawn` the second is a drawing."""
    head = element("thead", element("tr", *(element("th", words, scope="col") for words in headings)))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    made = element("table", element("caption", caption), head, element("tbody", *body), class_=class_)
    return element("div", made, class_="scroll")


def _read(package: str, name: str) -> str:
    return files(package).joinpath("pages", name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Content security policy: this style and this script by their digests, and nothing from anywhere."""
    digests = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in (("style", style), ("script", script))
    }
    allowed = [f"{kind}-src 'sha256-{digest}'" for kind, digest in digests.items()]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _embedded(value: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in: ASCII, and no character that HTML knows."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
