"""Pages for a browser that need no network and in which text from outside cannot run."""

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from string import Template

from delta_common.html.markup import Markup, element


def fill_page(package: str, page: str, /, *, data: Mapping[str, object], **parts: Markup | str) -> str:
    """The template `pages/PAGE.html` of a package, filled, with its style, script and data, as one file.

    The common style comes before the page's own. Each part replaces `$part` in the template; if it is not `Markup` it
    must already be escaped.
    """
    style = _read("delta_common.html", "page.css") + _read(package, f"{page}.css")
    script = _read(package, f"{page}.js")
    policy = _policy(style, script)
    template = Template(_read(package, f"{page}.html"))
    return template.substitute(policy=policy, style=style, script=script, data=_embedded(data), **parts)


def pairs(facts: dict[str, str], class_: str | None = None) -> Markup:
    """A description list of names and words."""
    entries = (element("div", element("dt", name), element("dd", words)) for name, words in facts.items())
    return element("dl", *entries, class_=class_)


def table(caption: str, headings: list[str], rows: list[list[str]], class_: str | None = None) -> Markup:
    """A table; the first cell of each row is its heading. In class `drawn` the second cell holds a drawing."""
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
    """Content security policy that allows this style and this script, by their digests, and nothing else."""
    digests = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in (("style", style), ("script", script))
    }
    allowed = [f"{kind}-src 'sha256-{digest}'" for kind, digest in digests.items()]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _embedded(value: Mapping[str, object]) -> str:
    """JSON that cannot end the element it stands in: ASCII only, and no <, > or &."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
