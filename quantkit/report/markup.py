"""HTML and SVG from Python calls. Whatever is not `Markup` already is escaped, so no text of a report can be markup."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

from quantkit.report.figures import clean
from quantkit.report.tables import Cell, Table

VOID = frozenset({"img", "meta", "br", "hr", "input"})
PICTURE = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")


class Markup(str):
    """Text that is markup and needs no escaping; only `tag` and `join` make it from a report's strings."""

    __slots__ = ()


def text(value: Any) -> Markup:
    """A value as escaped text; markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(escape(clean(value), quote=True))


def join(*parts: Any) -> Markup:
    """Parts one after another; None is nothing, lists are taken apart."""
    flat: list[str] = []
    for part in parts:
        if isinstance(part, (list, tuple)):
            flat.append(join(*part))
        elif part is not None:
            flat.append(text(part))
    return Markup("".join(flat))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. `class_` is class, `aria_label` is aria-label; None leaves an attribute out, True gives it bare."""
    shown = []
    for key, value in attributes.items():
        attribute = key.rstrip("_").replace("_", "-")
        if value is True:
            shown.append(f" {attribute}")
        elif value is not None and value is not False:
            shown.append(f' {attribute}="{text(value)}"')
    start = f"<{name}{''.join(shown)}>"
    return Markup(start if name in VOID else f"{start}{join(*children)}</{name}>")


def said(value: Any, name: str = "span", /, **attributes: Any) -> Markup:
    """Text that a model or a data set wrote: in its own direction, and isolated from the text around it."""
    return tag(name, value, dir="auto", **attributes)


def picture(source: str, alternative: str) -> Markup | None:
    """A picture that is a JPEG or PNG data URI; nothing for anything else."""
    if not PICTURE.fullmatch(source):
        return None
    return tag("img", src=source, alt=alternative, loading="lazy")


def json_text(value: Any) -> str:
    """JSON that may stand in a page: no character that HTML acts on, no lone surrogate, no NaN (ValueError)."""
    shown = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return shown.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def render(table: Table, **attributes: Any) -> Markup:
    """A table in a box of its own, which scrolls where the page is narrower than the table."""
    heads = [
        tag("th", column.heading, scope="col", class_="n" if column.numeric else None, title=column.title)
        for column in table.columns
    ]
    bodies = []
    for title, rows in table.bodies:
        lines = [] if title is None else [_heading_row(title, len(table.columns))]
        lines += [tag("tr", *(_cell(cell, table, index) for index, cell in enumerate(row))) for row in rows]
        bodies.append(tag("tbody", *lines))
    whole = tag(
        "table", tag("caption", tag("span", table.caption)), tag("thead", tag("tr", *heads)), *bodies, **attributes
    )
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=table.caption)


def _heading_row(title: str, columns: int) -> Markup:
    return tag("tr", tag("th", title, scope="rowgroup", colspan=columns), class_="group")


def _cell(cell: Cell, table: Table, index: int) -> Markup:
    main = cell.shown if cell.small is None else join(cell.shown, tag("small", cell.small))
    classes = (
        " ".join(
            part
            for part in ("n" if table.columns[index].numeric and not table.compact else "", cell.tone or "")
            if part
        )
        or None
    )
    if index == 0:
        return tag("th", main, scope="row", class_=classes, dir="auto" if cell.foreign else None)
    return tag("td", main, class_=classes, dir="auto" if cell.foreign else None)
