"""What all the pictures share: colours, new axes, and layer names that stay readable.

The colours are told apart by all kinds of colour vision (Okabe and Ito 2008, "Color Universal
Design") and in grey. The invariant: matplotlib is imported here only, and its settings stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxcle.errors import FlaxcleError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, RED = "#0072b2", "#e69f00", "#d55e00"
INK, GREY, FAINT = "#333333", "#888888", "#d9d9d9"
WIDTH = 7.0  # inches: a page of text
ROW = 0.19
LONGEST = 38  # letters of a layer name


def axes_of(ax: Axes | None, height: float) -> Axes:
    """The given axes, or those of a new figure of this height in inches, with a light frame.

    Raises:
        FlaxcleError: matplotlib is not installed.
    """
    if ax is None:
        try:
            import matplotlib.pyplot as plt  # noqa: PLC0415  (comes with an extra)
        except ImportError as error:
            raise FlaxcleError(
                "pictures need matplotlib", then="pip install 'flaxcle[plot]'"
            ) from error
        ax = plt.figure(figsize=(WIDTH, height), layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    return ax


def with_legend(ax: Axes) -> Axes:
    """The axes with a legend above them, if anything has a label."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize=8)
    return ax


def row_axes(ax: Axes | None, names: Sequence[str], height: float = ROW) -> Axes:
    """Axes with one row for each name, from top to bottom, in letters that fit the rows."""
    ax = axes_of(ax, max(height * len(names), 0.8) + 0.9)
    points = 72 * ax.bbox.height / ax.figure.dpi
    size = float(np.clip(0.8 * points / max(len(names), 1), 3, 8))
    ax.set_yticks(range(len(names)), [shortened(name) for name in names], fontsize=size)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color=FAINT, linewidth=0.6)
    return ax


def shortened(name: str) -> str:
    """A long name without its middle.

    >>> shortened("model/encoder/layers_11/attention/self/query/kernel")
    'model/encoder/l…tion/self/query/kernel'
    """
    if len(name) <= LONGEST:
        return name
    head = LONGEST * 2 // 5
    return f"{name[:head]}…{name[head + 1 - LONGEST :]}"
