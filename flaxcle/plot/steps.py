"""The stages of a recipe as a line from top to bottom: what each did to the SQNR."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flaxcle.plot.style import BLUE, GREY, INK, row_axes, with_legend
from flaxcle.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def stages(table: Table, *, ax: Axes | None = None) -> Axes:
    """The SQNR behind each stage of the recipe, without and with corrected biases.

    Stages that were kept have a full mark, the others a hollow one; the vertical line is the best
    point, which the recipe returned.

    Args:
        table: `Recipe.stages`.
        ax: where to draw; a new figure when not given.

    Raises:
        FlaxcleError: matplotlib is not installed.

    Example:
        >>> import flaxcle as fc
        >>> columns = ("stage", "kept", "SQNR dB", "corrected dB")
        >>> rows = (("as it is", True, 9.0, 10.0), ("equalize", True, 20.0, 22.0))
        >>> ax = fc.plot.stages(fc.Table(columns, rows))
        >>> [line.get_xdata().tolist() for line in ax.lines[:2]]
        [[9.0, 20.0], [10.0, 22.0]]
    """
    names, kept = table.column("stage"), table.column("kept")
    ax = row_axes(ax, names, height=0.3)
    rows = np.arange(len(names))
    best = -np.inf
    for column, label, color in (
        ("SQNR dB", "rounded", GREY),
        ("corrected dB", "rounded, biases corrected", BLUE),
    ):
        values = np.asarray(table.column(column), float)
        best = max(best, np.max(values, initial=-np.inf, where=np.isfinite(values)))
        ax.plot(values, rows, color=color, linewidth=1, label=label, zorder=2)
        faces = [color if flag else "white" for flag in kept]
        ax.scatter(values, rows, s=26, c=faces, edgecolors=color, linewidths=1.2, zorder=3)
    ax.axvline(best, color=INK, linewidth=0.8, linestyle="--", zorder=1, label="best")
    ax.scatter([], [], s=26, c="white", edgecolors=INK, label="not kept")
    ax.set_xlabel("SQNR of the output on held-back batches, dB")
    return with_legend(ax)
