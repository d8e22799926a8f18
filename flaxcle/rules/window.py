"""Pooling: sums and extrema over windows. One scale inside a window, which then passes.

Padding is zero for sums and infinite for extrema, which suits any scale.
"""

from __future__ import annotations

from collections.abc import Sequence

from flaxcle.jaxpr import Op
from flaxcle.rules import scale
from flaxcle.rules.context import Context, Rule, Why, shape_of
from flaxcle.rules.scale import Scale


def reduce_window(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Axes that the window passes untouched keep their channels."""
    old, new = shape_of(op.inputs[0]), shape_of(op.outputs[0])
    axes = [
        axis
        for axis, window in enumerate(op.params["window_dimensions"])
        if window > 1 or old[axis] != new[axis] or any(op.params["padding"][axis])
    ]
    terms = context.constant_along(args[0].terms, old, axes, Why("along", op))
    kept = [axis for axis in range(len(old)) if axis not in axes]
    return [args[0].keep(scale.broadcast(terms, tuple(old[a] for a in kept), new, kept))]


RULES: dict[str, Rule] = dict.fromkeys(
    ("reduce_window_sum", "reduce_window_max", "reduce_window_min"), reduce_window
)
