"""Small tables of results: what `compare`, `Calibration.table` and the recipe hand to people.

A table is data: columns and rows. It shows itself as text, in a terminal with rich and in a
notebook, and exports to CSV and pandas.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from flaxcle.errors import ConfigError


@dataclass(frozen=True)
class Table:
    """Columns and rows, printable and exportable.

    Attributes:
        columns: the headings.
        rows: one tuple per row, as long as `columns`.

    Example:
        >>> print(Table(("layer", "max"), (("Conv_0", 1.5), ("Dense_0", None))))
        layer    max
        Conv_0   1.5
        Dense_0    -
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows as dictionaries."""
        return (dict(zip(self.columns, row, strict=True)) for row in self.rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def column(self, name: str) -> list[Any]:
        """All the values of one column.

        Raises:
            ConfigError: there is no such column.
        """
        if name not in self.columns:
            raise ConfigError(
                f"the table has no column {name!r}", then=f"use one of {self.columns}"
            )
        return [row[self.columns.index(name)] for row in self.rows]

    def __str__(self) -> str:
        """Aligned text: words to the left, numbers to the right."""
        cells = [self.columns, *([_text(value) for value in row] for row in self.rows)]
        widths = [max(len(row[k]) for row in cells) for k in range(len(self.columns))]
        words = self._words()
        lines = []
        for row in cells:
            parts = [
                cell.ljust(width) if word else cell.rjust(width)
                for cell, width, word in zip(row, widths, words, strict=True)
            ]
            lines.append("  ".join(parts).rstrip())
        return "\n".join(lines)

    def __rich__(self) -> Any:
        """What `rich.print` shows; rich calls it, so it is installed."""
        from rich import box, table, text  # noqa: PLC0415  (an optional package)

        shown = table.Table(box=box.SIMPLE_HEAD)
        for name, word in zip(self.columns, self._words(), strict=True):
            shown.add_column(text.Text(name), justify="left" if word else "right", overflow="fold")
        for row in self.rows:
            shown.add_row(*(text.Text(_text(value)) for value in row))
        return shown

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.to_html()

    def _words(self) -> list[bool]:
        """Which columns hold text."""
        return [any(isinstance(row[k], str) for row in self.rows) for k in range(len(self.columns))]

    def to_csv(self, path: str | Path | None = None) -> str:
        r"""The table as CSV text, also written to `path` when given.

        Example:
            >>> Table(("layer", "max"), (("Conv_0", 1.5),)).to_csv()
            'layer,max\nConv_0,1.5\n'
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.columns, *self.rows])
        if path is not None:
            Path(path).write_text(text.getvalue(), encoding="utf-8")
        return text.getvalue()

    def to_html(self) -> str:
        """The table as HTML, without colours of its own, rounded as in print.

        Example:
            >>> "<td" in Table(("layer", "max"), (("Conv_0", 1.5),)).to_html()
            True
        """
        rows = ([_text(value) for value in row] for row in self.rows)
        return html_table(self.columns, rows, self._words())

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`; pandas is no dependency, install it to use this."""
        import pandas as pd  # noqa: PLC0415  (an optional package)

        return pd.DataFrame(self.rows, columns=list(self.columns))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[bool]) -> str:
    """A table for notebooks, which bring their own colours; words to the left, numbers right.

    Example:
        >>> html_table(("a<b",), [("1 & 2",)], (False,)).count("&")
        2
    """
    head = _html_row("th", columns, words)
    body = "".join(_html_row("td", row, words) for row in rows)
    table = f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
    return f'<div style="max-height: 36em; overflow: auto">{table}</div>'


def _html_row(tag: str, cells: Sequence[str], words: Sequence[bool]) -> str:
    parts = (
        f'<{tag} style="padding: 0.2em 0.6em; text-align: {"left" if word else "right"}">'
        f"{escape(cell)}</{tag}>"
        for cell, word in zip(cells, words, strict=True)
    )
    return f"<tr>{''.join(parts)}</tr>"
