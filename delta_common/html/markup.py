"""HTML and SVG from untrusted text: every string is escaped."""

import html
import unicodedata

_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")


class Markup(str):
    """Text that is already markup."""

    __slots__ = ()


def element(name: str, *children: str | None, **attributes: object) -> Markup:
    """`<name …>children</name>`; attributes `class_` and `stroke_width` are written `class` and `stroke-width`.

    Children that are not `Markup` are escaped. Children and attributes that are None are left out, as are attributes
    that are False.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*parts: str | None) -> Markup:
    """All parts, one after another; those that are not `Markup` are escaped, None is left out."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts if part is not None))


def escape(text: str) -> Markup:
    """Escaped text; control characters and others that could hide or reorder text become U+FFFD."""
    plain = "".join("\ufffd" if unicodedata.category(c) in _INVISIBLE and c not in "\n\t" else c for c in text)
    return Markup(html.escape(plain, quote=True))
