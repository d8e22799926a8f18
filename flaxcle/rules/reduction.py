"""Reductions, scans along an axis and sorting: one scale along the axis, which then passes.

sum_k s x[k] = s sum_k x[k]      max_k s x[k] = s max_k x[k]      argmax_k s x[k] = argmax_k x[k]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flaxcle.jaxpr import Op
from flaxcle.rules import scale
from flaxcle.rules.context import Context, Rule, Why, shape_of
from flaxcle.rules.scale import PLAIN, Scale, Terms

SUMS = ("reduce_sum", "reduce_max", "reduce_min")
CUMULATIVE = ("cumsum", "cummax", "cummin")


def along(
    arg: Scale, shape: tuple[int, ...], axes: Sequence[int], op: Op, context: Context
) -> Terms:
    """The scale without the axes, along which it must be the same."""
    return context.constant_along(arg.terms, shape, axes, Why("along", op))


def reduce_(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Sum, maximum or minimum over axes."""
    return [args[0].keep(along(args[0], shape_of(op.inputs[0]), op.params["axes"], op, context))]


def reduce_prod(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """The product of n elements carries the n-th power."""
    shape, axes = shape_of(op.inputs[0]), op.params["axes"]
    count = math.prod(shape[axis] for axis in axes)
    return [args[0].keep(scale.times(count, along(args[0], shape, axes, op, context)))]


def arg_reduce(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Where the largest element stands does not depend on a common scale."""
    context.read += args[0].terms
    along(args[0], shape_of(op.inputs[0]), op.params["axes"], op, context)
    return [PLAIN]


def truth(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Reductions of truth values."""
    return [PLAIN]


def cumulative(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Running sums and extrema."""
    return [_same_along(args[0], shape_of(op.inputs[0]), op.params["axis"], op, context)]


def sort(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Operands are permuted along one axis by comparisons of the keys."""
    axis = op.params["dimension"]
    shapes = [shape_of(value) for value in op.inputs]
    return [_same_along(a, s, axis, op, context) for a, s in zip(args, shapes, strict=True)]


def top_k(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """The k largest along an axis, and where they stood."""
    shape = shape_of(op.inputs[0])
    axis = op.params.get("axis", op.params.get("reduction_dimension", -1)) % len(shape)
    terms = along(args[0], shape, (axis,), op, context)
    size = shape_of(op.outputs[0])[axis]
    return [args[0].keep(scale.insert(terms, axis, size)), PLAIN]


def _same_along(arg: Scale, shape: tuple[int, ...], axis: int, op: Op, context: Context) -> Scale:
    terms = along(arg, shape, (axis,), op, context)
    return Scale(scale.insert(terms, axis, shape[axis]), arg.wild)


RULES: dict[str, Rule] = {
    **dict.fromkeys(SUMS, reduce_),
    **dict.fromkeys(CUMULATIVE, cumulative),
    **dict.fromkeys(("argmax", "argmin"), arg_reduce),
    **dict.fromkeys(("reduce_and", "reduce_or", "reduce_xor"), truth),
    **dict.fromkeys(("top_k", "approx_top_k"), top_k),
    "reduce_prod": reduce_prod,
    "sort": sort,
}
