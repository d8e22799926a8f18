"""Box plots: channel ranges of every layer, the channels of one layer, the scales of every group.

Boxes are drawn from five numbers each (extremes, quartiles, median), so that no weight is needed.
The whiskers end at the extremes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flaxcle.analysis import RangeStatistics
from flaxcle.analysis.ranges import QUARTILES
from flaxcle.plot.style import BLUE, FAINT, INK, ORANGE, ROW, axes_of, row_axes, with_legend
from flaxcle.spec import Scales

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SMALLEST = 2.0**-14  # where a weight of zeros is drawn


def channel_ranges(
    before: RangeStatistics, after: RangeStatistics | None = None, *, ax: Axes | None = None
) -> Axes:
    """For each weight how far its channels stay under its largest entry, before and after.

    A channel's range is its largest magnitude, in units of the largest of the whole weight. A
    channel left of the dashed line, half a step of the grid, is rounded to zero altogether.
    Channels of zeros are left out.

    Args:
        before: the statistics of a network.
        after: of the same network after equalizing; weights are matched by name.
        ax: where to draw; a new figure when not given.

    Raises:
        FlaxcleError: matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn, params = lambda p, x: x @ p["w"], {"w": jnp.array([[1.0, 0.5, 0.01]])}
        >>> found = fc.range_statistics(fn, params, [jnp.ones((1, 1))], fc.QuantConfig())
        >>> fc.plot.channel_ranges(found).get_xlabel()
        'largest weight of a channel / of the layer'
    """
    first, second = _shares(before), _shares(after) if after else {}
    ax = row_axes(ax, _labels(before), height=ROW * (1.6 if after else 1))
    places = {name: float(k) for k, name in enumerate(first)}
    shift, width = (0.2, 0.34) if after else (0.0, 0.6)
    label = "before" if after else None
    _draw(ax, first, {name: y - shift for name, y in places.items()}, width, ORANGE, label)
    common = {name: y + shift for name, y in places.items() if name in second}
    _draw(ax, second, common, width, BLUE, "after")
    ax.set_xscale("log", base=2)
    half = _half_step(before)
    ax.axvline(half, color=INK, linewidth=0.8, linestyle="--", label="half a step of the grid")
    ax.set_xlim(half / 4, 1.15)
    ax.set_xlabel("largest weight of a channel / of the layer")
    return with_legend(ax)


def channels(
    five: np.ndarray, *, scale: float | None = None, color: str = BLUE, ax: Axes | None = None
) -> Axes:
    """The weights of one layer, a box for each output channel.

    Args:
        five: array of shape (channels, 5), an entry of `RangeStatistics.channels`.
        scale: the step of the grid, of which the unit of the axis is made when given.
        color: of the boxes.
        ax: where to draw; a new figure when not given.

    Raises:
        FlaxcleError: matplotlib is not installed.

    Example:
        >>> import flaxcle as fc
        >>> ax = fc.plot.channels(np.array([[-2.0, -1.0, 0.0, 1.0, 2.0]]), scale=0.5)
        >>> ax.get_ylabel()
        'weight, steps of the grid'
    """
    ax = axes_of(ax, 3.0)
    boxes = dict(enumerate(np.asarray(five) / (scale or 1.0)))
    ax.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
    _draw(ax, boxes, {k: float(k) for k in boxes}, 0.7, color, None, orientation="vertical")
    ax.set_xlim(-0.8, len(boxes) - 0.2)
    ax.set_xlabel("output channel")
    ax.set_ylabel("weight, steps of the grid" if scale else "weight")
    return ax


def scales(scales: Scales, *, ax: Axes | None = None) -> Axes:
    """The scales of each group, a box each; 1 leaves a channel alone.

    Args:
        scales: of `solve`, `learn_scales` or `balance_scales`.
        ax: where to draw; a new figure when not given.

    Raises:
        FlaxcleError: matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> ax = fc.plot.scales(fc.Scales({"a -> b": jnp.array([-1.0, 0.0, 1.0])}))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['a -> b']
    """
    five = {name: np.quantile(2.0 ** np.asarray(x), QUARTILES) for name, x in scales.log2.items()}
    ax = row_axes(ax, list(five))
    ax.axvline(1, color=INK, linewidth=0.8)
    _draw(ax, five, {name: float(k) for k, name in enumerate(five)}, 0.6, BLUE, None)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("scale")
    return ax


def _draw(
    ax: Axes,
    boxes: dict[Any, np.ndarray],
    places: dict[Any, float],
    width: float,
    color: str,
    label: str | None,
    orientation: Literal["horizontal", "vertical"] = "horizontal",
) -> None:
    keys = ("whislo", "q1", "med", "q3", "whishi")
    line = {"color": color, "linewidth": 0.8}
    drawn = ax.bxp(
        [dict(zip(keys, map(float, boxes[name]), strict=True)) for name in places],
        positions=list(places.values()),
        widths=width,
        orientation=orientation,
        patch_artist=True,
        manage_ticks=False,
        showfliers=False,
        boxprops={"facecolor": color, "edgecolor": color, "alpha": 0.6, "linewidth": 0.8},
        whiskerprops=line,
        capprops=line,
        medianprops={"color": INK, "linewidth": 1.2},
    )
    for box in drawn["boxes"][:1]:
        box.set_label(label)


def _shares(found: RangeStatistics) -> dict[str, np.ndarray]:
    """Five numbers of the channels of each weight, in units of its largest entry."""
    five = {row["name"]: np.array(list(row.values())[2:]) for row in found.boxes()}
    return {name: np.maximum(x / (x[-1] or 1.0), _SMALLEST) for name, x in five.items()}


def _half_step(found: RangeStatistics) -> float:
    """Half a step in the same units, of the median weight."""
    peaks = [max(row["max"], -row["min"]) or 1.0 for row in found.weights]
    return float(np.median(np.divide(found.weights.column("scale"), peaks))) / 2


def _labels(found: RangeStatistics) -> Sequence[str]:
    """The layers; a quantizer's name has their name and a role in front of number and turn."""
    rows = found.weights
    return [row["layer"] + row["name"][len(row["layer"]) + len("/weight") :] for row in rows]
