"""Specs for notebooks: the groups as one table, what is blocked as another, folded away.

The invariant: the words are those of `print(spec)`, escaped.
"""

from __future__ import annotations

from html import escape

from flaxcle.spec.table import Spec
from flaxcle.spec.text import blocked_rows, extent, marked_rows, totals
from flaxcle.tables import html_table


def spec_to_html(spec: Spec) -> str:
    """The totals, the groups, and the blocked axes with their reasons."""
    groups = []
    for group in spec.groups:
        rows = [f"{mark} {rows}" for mark, rows in marked_rows(group.sites)]
        sides = ("; ".join(row for row in rows if row.startswith(sign)) for sign in "×÷")
        groups.append((group.name, extent(group), *sides))
    parts = [f"<p>{escape(totals(spec))}</p>"]
    if groups:
        parts.append(html_table(("group", "scales", "multiplied", "divided"), groups, (True,) * 4))
    if spec.blocked:
        rows = [(str(number), *words) for number, *words in blocked_rows(spec.blocked)]
        table = html_table(("axes", "why", "which"), rows, (False, True, True))
        parts.append(f"<details><summary>what is blocked</summary>{table}</details>")
    return f"<div>{''.join(parts)}</div>".replace("\u00a0", " ")
