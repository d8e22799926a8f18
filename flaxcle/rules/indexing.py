"""Reading and writing windows whose place may be computed.

Where the start is a known constant, terms move with the elements. Where it is computed, any
element may be read, so that all along the indexed axes have one scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flaxcle.jaxpr import Op
from flaxcle.rules import scale
from flaxcle.rules.box import Shape
from flaxcle.rules.context import Context, Rule, Why, shape_of
from flaxcle.rules.contraction import absorbs
from flaxcle.rules.layout import join
from flaxcle.rules.scale import WILD, Gauge, Scale, Terms


def uniform(
    terms: Terms,
    shape: Shape,
    axes: Sequence[int],
    op: Op,
    context: Context,
    gauge: Gauge | None = None,
) -> Terms:
    """The scale without axes that are read at unknown places."""
    usable = gauge if gauge and absorbs(terms, terms, shape, axes) else None
    return context.constant_along(terms, shape, axes, Why("lookup", op), usable)


def dynamic_slice(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """A window whose start may be known."""
    old, new = shape_of(op.inputs[0]), shape_of(op.outputs[0])
    terms, unknown = args[0].terms, []
    for axis, index in enumerate(op.inputs[1:]):
        start = context.constants.of(index)
        if old[axis] == new[axis]:
            continue
        if start is None:
            unknown.append(axis)
        else:
            first = _inside(start, old[axis], new[axis])
            terms = scale.window(terms, axis, first, first + new[axis])
    sizes = tuple(old[a] if a in unknown else new[a] for a in range(len(old)))
    terms = uniform(terms, sizes, unknown, op, context, args[0].gauge)
    kept = [axis for axis in range(len(old)) if axis not in unknown]
    return [args[0].keep(scale.broadcast(terms, tuple(new[a] for a in kept), new, kept))]


def _inside(start: np.ndarray, size: int, window: int) -> int:
    """The start as jax clamps it."""
    return int(np.clip(start, 0, size - window))


def dynamic_update_slice(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """A window written into an array: elsewhere the array stays."""
    target, update = args[:2]
    shape, size = shape_of(op.inputs[0]), shape_of(op.inputs[1])
    if target.wild and update.wild:
        return [WILD]
    axes = [axis for axis in range(len(shape)) if shape[axis] != size[axis]]
    start = context.constants.of(op.inputs[2 + axes[0]]) if len(axes) == 1 else None
    if start is None:
        return [blended(target, update, shape, size, (axes, axes), op, context)]
    axis = axes[0]
    first = _inside(start, shape[axis], size[axis])
    last = first + size[axis]
    before = target.keep(scale.window(target.terms, axis, 0, first))
    after = target.keep(scale.window(target.terms, axis, last, shape[axis]))
    sizes = (first, size[axis], shape[axis] - last)
    parts = [pair for pair in zip((before, update, after), sizes, strict=True) if pair[1]]
    return [join([p for p, _ in parts], [n for _, n in parts], shape, axis, context)]


def blended(
    target: Scale,
    update: Scale,
    shape: Shape,
    size: Shape,
    axes: tuple[Sequence[int], Sequence[int]],
    op: Op,
    context: Context,
) -> Scale:
    """Target and update share one scale, the same along the axes of each that are indexed.

    The axes that are left must correspond in order.
    """
    kept = [axis for axis in range(len(shape)) if axis not in axes[0]]
    short = tuple(shape[a] for a in kept)
    one = Scale(uniform(target.terms, shape, axes[0], op, context), target.wild)
    two = Scale(uniform(update.terms, size, axes[1], op, context), update.wild)
    both = context.same((one, two), short, Why("equal", op))
    return both.keep(scale.broadcast(both.terms, short, shape, kept))


RULES: dict[str, Rule] = {
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
}
