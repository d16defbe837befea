"""HTML and SVG as values: whatever is not `Markup` is text, and is escaped. Knows no report."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TypeAlias

Attribute: TypeAlias = "str | int | float | bool | None"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_EMPTY_TAGS = frozenset({"meta", "br", "hr"})


class Markup(str):
    """HTML that is ready to stand in a page."""


Child: TypeAlias = "str | int | float | Iterable[Child] | None"


def text(value: object) -> Markup:
    """Any value as text: escaped; control characters become visible, halves of a surrogate pair U+FFFD."""
    clean = _SURROGATE.sub("\ufffd", str(value).replace("\r\n", "\n"))
    clean = _CONTROL.sub(lambda found: "\u2421" if found[0] == "\x7f" else chr(0x2400 + ord(found[0])), clean)
    return Markup(html.escape(clean, quote=True))


def join(*children: Child) -> Markup:
    """The children one after another; None is nothing."""
    return Markup("".join(_pieces(children)))


def tag(name: str, /, *children: Child, **attributes: Attribute) -> Markup:
    """`<name …>children</name>`. `cls` is class, `stroke_width` is stroke-width; None and False leave one out."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{shown}>" if name in _EMPTY_TAGS else f"<{name}{shown}>{join(*children)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    if value is False:
        return ""
    name = "class" if key == "cls" else key.replace("_", "-")
    if name == "viewbox":
        name = "viewBox"
    return f" {name}" if value is True else f' {name}="{text(_plain(value))}"'


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _pieces(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            yield child
        elif isinstance(child, (str, int, float)):
            yield text(child)
        else:
            yield from _pieces(child)


def both(korean: Child, english: Child) -> Markup:
    """Korean, and English as its lesser companion."""
    return join(korean, " ", tag("span", english, cls="en", lang="en"))


def section(anchor: str, korean: str, english: str, *children: Child) -> Markup:
    """A part of the page with its heading."""
    return tag("section", tag("h2", both(korean, english)), *children, id=anchor)


def card(*children: Child, cls: str = "") -> Markup:
    return tag("div", *children, cls=f"card {cls}".strip())


def folded(summary: Child, *children: Child, is_open: bool = False) -> Markup:
    """What a click unfolds, without a script."""
    return tag("details", tag("summary", summary), *children, open=is_open)


def table(head: Iterable[Child], rows: Iterable[Iterable[Child]], *, text_columns: int = 1) -> Markup:
    """The first `text_columns` columns are words, the others figures."""

    def cells(name: str, row: Iterable[Child]) -> Markup:
        return tag("tr", *(tag(name, cell, cls="n" if i >= text_columns else None) for i, cell in enumerate(row)))

    body = tag("table", tag("thead", cells("th", head)), tag("tbody", *(cells("td", row) for row in rows)))
    return tag("div", body, cls="scroll")


def facts(pairs: Iterable[tuple[Child, Child]]) -> Markup:
    """Names and their values; a value of None leaves its line out."""
    lines = [(name, value) for name, value in pairs if value is not None]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in lines))
