"""Bars: which layers hurt, and how near each network is to the float one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flaxcle.analysis.sensitivity import ACTIVATIONS, ALL, BOTH, WEIGHTS
from flaxcle.errors import ConfigError
from flaxcle.plot.style import BLUE, INK, ORANGE, ROW, row_axes, with_legend
from flaxcle.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {WEIGHTS: BLUE, ACTIVATIONS: ORANGE, BOTH: INK}
_MARGIN = 3.0  # dB that the least noise stays off the edge


def sensitivity(table: Table, *, ax: Axes | None = None) -> Axes:
    """The noise that each layer makes alone, the worst on top; long bars hurt.

    Weights and activations of a layer have a bar each. Vertical lines are the whole network:
    all weights, all activations, and both.

    Args:
        table: of `flaxcle.sensitivity`, or a part of its rows.
        ax: where to draw; a new figure when not given.

    Raises:
        FlaxcleError: matplotlib is not installed.

    Example:
        >>> import flaxcle as fc
        >>> rows = (("(all)", "both", 20.0), ("a", "weights", 21.0), ("b", "weights", 40.0))
        >>> ax = fc.plot.sensitivity(fc.Table(("layer", "kind", "alone dB"), rows))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['a', 'b']
    """
    rows = [(row["layer"], row["kind"], row["alone dB"]) for row in table]
    layers = list(dict.fromkeys(layer for layer, _, _ in rows if layer != ALL))
    least = max((value for _, _, value in rows if np.isfinite(value)), default=0.0) + _MARGIN
    kinds = [kind for kind in (WEIGHTS, ACTIVATIONS) if any(row[1] == kind for row in rows)]
    ax = row_axes(ax, layers, height=ROW * (1.4 if len(kinds) > 1 else 1))
    thick = 0.8 / max(len(kinds), 1)
    for k, kind in enumerate(kinds):
        own = {layer: value for layer, of, value in rows if of == kind and layer != ALL}
        places = [layers.index(layer) + (k - (len(kinds) - 1) / 2) * thick for layer in own]
        lengths = [min(value, least) - least for value in own.values()]
        ax.barh(places, lengths, thick, left=least, color=_COLORS[kind], label=kind)
    for layer, kind, value in rows:
        if layer == ALL and np.isfinite(value):
            style = "-" if kind == BOTH else "--"
            label = "everything" if kind == BOTH else f"all {kind}"
            ax.axvline(value, color=_COLORS[kind], linewidth=1, linestyle=style, label=label)
    ax.invert_xaxis()
    ax.set_xlabel("SQNR of the output when only this is rounded, dB")
    return with_legend(ax)


def accuracy(table: Table, *, ax: Axes | None = None) -> Axes:
    """Accuracy and agreement with float of each network, from `flaxcle.compare`.

    Args:
        table: of `flaxcle.compare`.
        ax: where to draw; a new figure when not given.

    Raises:
        ConfigError: the table has neither column.
        FlaxcleError: matplotlib is not installed.

    Example:
        >>> import flaxcle as fc
        >>> table = fc.compare(np.eye(3), {"int8": np.eye(3)[::-1]})
        >>> [round(bar.get_width()) for bar in fc.plot.accuracy(table).patches]
        [100, 33]
    """
    shown = [name for name in ("accuracy %", "agreement %") if name in table.columns]
    if not shown:
        raise ConfigError("there is nothing to draw", then="pass the table of flaxcle.compare")
    names = table.column(table.columns[0])
    ax = row_axes(ax, names, height=0.22 * (1 + len(shown)))
    thick = 0.8 / len(shown)
    for k, (name, color) in enumerate(zip(shown, (BLUE, ORANGE), strict=False)):
        places = [row + (k - (len(shown) - 1) / 2) * thick for row in range(len(names))]
        bars = ax.barh(places, table.column(name), thick * 0.92, color=color, label=name[:-2])
        ax.bar_label(bars, fmt="%.4g", padding=2, fontsize=7, color=INK)
    ax.set_xlim(0, 108)
    ax.set_xlabel("% of the examples")
    return with_legend(ax)
