"""HTML out of Python: every text is escaped, unless it is markup that was made here."""

from __future__ import annotations

import base64
import json
import math
from html import escape
from typing import Any

from flaxcle.tables import Table

VOID = ("input", "meta")


class Markup(str):
    """Text that is markup already."""


def tag(element: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element; `class_` is written `class`, `data_place` `data-place`, and None is left out.

    >>> tag("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    words = [element]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(str(value))}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if element in VOID else f"{start}{joined(*children)}</{element}>")


def joined(*children: Any) -> Markup:
    """Several pieces as one."""
    return Markup("".join(c if isinstance(c, Markup) else escape(str(c)) for c in children))


def as_json(value: Any) -> Markup:
    """JSON that can stand in a script element; what is not finite is null."""
    text = json.dumps(plain(value), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def plain(value: Any) -> Any:
    """The value out of dicts, lists and finite numbers."""
    if isinstance(value, Table):
        return [plain(row) for row in value]
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def data_table(name: str, table: Table, caption: str) -> Markup:
    """A table that can be sorted, filtered, and downloaded as CSV."""
    numeric = [not any(isinstance(row[k], str) for row in table.rows) for k in _columns(table)]
    head = (
        tag("th", column or "network", scope="col", class_="number" if number else None)
        for column, number in zip(table.columns, numeric, strict=True)
    )
    body = (tag("tr", *map(_cell, row)) for row in table.rows)
    grid = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), id=name, class_="data")
    return tag(
        "figure",
        tag("figcaption", caption, " ", csv_link(name, table)),
        tag("div", grid, class_="scroll", tabindex=0, role="region", aria_label=caption),
    )


def csv_link(name: str, table: Table) -> Markup:
    """A link that saves a table."""
    data = base64.b64encode(table.to_csv().encode()).decode()
    href = f"data:text/csv;charset=utf-8;base64,{data}"
    return tag("a", "CSV", href=href, download=f"{name}.csv", class_="download")


def _columns(table: Table) -> range:
    return range(len(table.columns))


def _cell(value: Any) -> Markup:
    """A cell; numbers carry the key by which they are sorted."""
    if isinstance(value, bool):
        return tag("td", "yes" if value else "no")
    if isinstance(value, int | float):
        return tag("td", shown(value), class_="number", data_order=_key(value))
    return tag("td", "\u2013" if value is None else value)


def _key(value: float) -> float:
    return math.copysign(1e308, value) if math.isinf(value) else value


def shown(value: Any) -> str:
    """A number as a person reads it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        return "\u221e" if value > 0 else "\u2212\u221e"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def short(names: list[str], length: int = 24) -> list[str]:
    """Names that fit beside a chart: their ends, or all of them where ends are alike."""
    ends = [name if len(name) <= length else "\u2026" + name[1 - length :] for name in names]
    pairs = dict(zip(names, ends, strict=True))
    return ends if len(set(pairs.values())) == len(pairs) else names
