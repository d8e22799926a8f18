"""Matrix products: sums of products over common axes.

    y[b, m, n] = sum_k x[b, m, k] w[b, k, n]

A scale passes when that of x[k] w[k] is the same for all k. The invariant: a leaf that meets its
first contraction may absorb the common factor in its other axes (see `Gauge`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flaxcle.jaxpr import Op
from flaxcle.rules import scale
from flaxcle.rules.box import Irregular, Shape
from flaxcle.rules.context import Context, Rule, Why, shape_of
from flaxcle.rules.scale import WILD, Scale, Terms


def contract(
    one: tuple[Scale, Terms],
    two: tuple[Scale, Terms],
    shape: Shape,
    axes: Sequence[int],
    why: Why,
    context: Context,
) -> Terms:
    """Sums a product over axes; each operand comes with its terms in the product's axes."""
    terms = scale.add(one[1], two[1])
    gauge = next(
        (
            operand.gauge
            for operand, own in (two, one)
            if operand.gauge and absorbs(own, terms, shape, axes)
        ),
        None,
    )
    return context.constant_along(terms, shape, axes, why, gauge)


def absorbs(own: Terms, terms: Terms, shape: Shape, axes: Sequence[int]) -> bool:
    """Whether some term of the leaf, unseen by the sum, varies wherever the sum's parts do."""

    def seen(term: scale.Term) -> bool:
        return any(scale.depends(term, axis, shape) for axis in axes)

    needed = {
        axis
        for term in terms
        if seen(term)
        for axis in range(len(shape))
        if axis not in axes and scale.depends(term, axis, shape)
    }
    return any(
        not seen(term)
        and all(along.offset == 0 for along in term.axes)
        and scale.box.extent(term.axes) == scale.box.extent(_whole(shape))
        and needed <= {a for a in range(len(shape)) if scale.depends(term, a, shape)}
        for term in own
    )


def _whole(shape: Shape) -> scale.Axes:
    return tuple(scale.box.whole(size) for size in shape)


def dot_general(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """y[b, m, n] = sum_k x[b, m, k] w[b, k, n]."""
    numbers = op.params["dimension_numbers"]
    shapes = [shape_of(value) for value in op.inputs]
    return [_product(op, args, shapes, numbers, context)]


def ragged_dot_general(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Rows meet the matrix of their group, which may be any: all matrices have one scale.

    y[m, n] = sum_k x[m, k] w[group(m), k, n]
    """
    numbers = op.params["ragged_dot_dimension_numbers"]
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers
    groups, ragged = numbers.rhs_group_dimensions, numbers.lhs_ragged_dimensions
    if len(groups) != 1 or any(axis in (*lhs_sum, *lhs_batch) for axis in ragged):
        raise Irregular
    lhs, rhs = (shape_of(value) for value in op.inputs[:2])
    terms = context.constant_along(args[1].terms, rhs, groups, Why("lookup", op))
    matrix = tuple(size for axis, size in enumerate(rhs) if axis not in groups)

    def moved(axes: Sequence[int]) -> tuple[int, ...]:
        return tuple(axis - (axis > groups[0]) for axis in axes)

    within = ((lhs_sum, moved(rhs_sum)), (lhs_batch, moved(rhs_batch)))
    both = [args[0], Scale(terms, args[1].wild)]
    return [_product(op, both, [lhs, matrix], within, context)]


def _product(
    op: Op, args: Sequence[Scale], shapes: Sequence[Shape], numbers: Any, context: Context
) -> Scale:
    if any(arg.wild for arg in args):
        return WILD
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = numbers
    lhs, rhs = shapes
    lhs_free = [a for a in range(len(lhs)) if a not in (*lhs_sum, *lhs_batch)]
    rhs_free = [a for a in range(len(rhs)) if a not in (*rhs_sum, *rhs_batch)]
    lhs_order = (*lhs_batch, *lhs_free, *lhs_sum)
    rhs_order = (*rhs_batch, *rhs_free, *rhs_sum)
    shape = (
        *(lhs[a] for a in (*lhs_batch, *lhs_free)),
        *(rhs[a] for a in rhs_free),
        *(lhs[a] for a in lhs_sum),
    )
    batch, summed = len(lhs_batch), len(lhs_sum)
    first_sum = len(shape) - summed
    lhs_at = (*range(batch + len(lhs_free)), *range(first_sum, len(shape)))
    rhs_at = (*range(batch), *range(batch + len(lhs_free), len(shape)))
    placed = [
        (arg, _placed(arg.terms, own, order, shape, at))
        for arg, own, order, at in (
            (args[0], lhs, lhs_order, lhs_at),
            (args[1], rhs, rhs_order, rhs_at),
        )
    ]
    axes = range(first_sum, len(shape))
    return Scale(contract(placed[0], placed[1], shape, axes, Why("sum", op), context))


def _placed(
    terms: Terms, own: Shape, order: Sequence[int], shape: Shape, at: Sequence[int]
) -> Terms:
    moved = scale.transpose(terms, order)
    return scale.broadcast(moved, tuple(own[a] for a in order), shape, at)


RULES: dict[str, Rule] = {
    "dot_general": dot_general,
    "ragged_dot_general": ragged_dot_general,
}
