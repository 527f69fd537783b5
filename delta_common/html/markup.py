"""HTML and SVG from text that is not trusted: every string is escaped on its way in."""

import html
import unicodedata

_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


class Markup(str):
    """Text that is markup already; only this module makes it out of other text."""

    __slots__ = ()


def element(name: str, *children: str | None, **attributes: object) -> Markup:
    """`<name …>children</name>`; an attribute `class_` or `stroke_width` loses `_` or becomes `stroke-width`.

    Children that are not `Markup` are escaped, None is left out, and so is an attribute that is None or False.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*parts: str | None) -> Markup:
    """Parts one after another, those that are not `Markup` escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts if part is not None))


def escape(text: str) -> Markup:
    """Text that shows as itself; characters that would turn or hide what follows are replaced by U+FFFD."""
    plain = "".join("\ufffd" if unicodedata.category(c) in _INVISIBLE and c not in "\n\t" else c for c in text)
    return Markup(html.escape(plain, quote=True))
