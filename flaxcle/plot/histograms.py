"""A tensor against its grid: how often each value is used, what is clipped and what vanishes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flaxcle.analysis import Histogram
from flaxcle.plot.style import BLUE, GREY, ORANGE, RED, axes_of, with_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def histogram(histogram: Histogram, *, ax: Axes | None = None) -> Axes:
    """The elements of a weight or an activation by the grid value that they are rounded to.

    The count axis is logarithmic. The bin of zero is split into what is exactly zero (grey) and
    what vanishes under half a step (orange); clipped elements stand outside of the grid (red).

    Args:
        histogram: an entry of `RangeStatistics.histograms`.
        ax: where to draw; a new figure when not given.

    Raises:
        FlaxcleError: matplotlib is not installed.

    Example:
        >>> import flaxcle as fc
        >>> found = fc.Histogram(0.5, -1, 1, np.array([1, 4, 0, 2]), 0, 1, zeros=3, vanished=1)
        >>> fc.plot.histogram(found).get_legend_handles_labels()[1][1:]
        ['under half a step: 12 %', 'exactly zero', 'clipped: 12 %']
    """
    ax = axes_of(ax, 2.8)
    centres, step = histogram.centres, histogram.width * histogram.scale
    edges = np.append(centres - step / 2, centres[-1] + step / 2)
    ax.stairs(histogram.counts, edges, fill=True, color=BLUE, label="on the grid")
    thick = max(step, (edges[-1] - edges[0]) / 200)
    zeros, vanished = histogram.zeros, histogram.vanished
    if vanished:
        label = f"under half a step: {histogram.percent(vanished):.2g} %"
        ax.bar(0, zeros + vanished, thick, color=ORANGE, label=label)
    if zeros:
        ax.bar(0, zeros, thick, color=GREY, label="exactly zero")
    clipped = histogram.below, histogram.above
    if any(clipped):
        label = f"clipped: {histogram.percent(sum(clipped)):.2g} %"
        ends = edges[0] - 2 * thick, edges[-1] + 2 * thick
        ax.bar(ends, clipped, 2 * thick, color=RED, label=label)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.5)
    ax.set_xlabel(f"value (step {histogram.scale:.3g})")
    ax.set_ylabel("elements")
    return with_legend(ax)
