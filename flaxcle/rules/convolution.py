"""Convolutions: matrix products over the input channels of a group, and over windows in space.

    y[n, s', g, o] = sum_{s, i} x[n, s, g, i] w[s, i, g, o]

Zero padding and dilation suit any scale. The invariant: depthwise is the case of one channel per
group, in which nothing is summed over channels and the scale passes through the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flaxcle.jaxpr import Op
from flaxcle.rules import scale
from flaxcle.rules.box import Shape
from flaxcle.rules.context import Context, Rule, Why, shape_of
from flaxcle.rules.contraction import contract
from flaxcle.rules.scale import WILD, Scale, Terms


def conv_general_dilated(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Any convolution: grouped in features or in batch, strided, dilated, transposed."""
    if any(arg.wild for arg in args):
        return [WILD]
    features, batches = op.params["feature_group_count"], op.params["batch_group_count"]
    groups = features * batches
    numbers = op.params["dimension_numbers"]
    lhs, lhs_shape = _images(args[0].terms, op, features, batches)
    rhs, rhs_shape = _kernels(args[1].terms, op, groups)
    space = len(numbers.lhs_spec) - 2
    kept = [i for i in range(space) if _pointwise(op, i)]
    # Joint axes: batch, space, groups, out channels, in channels, window.
    shape = (*lhs_shape[: 1 + space + 1], rhs_shape[1], lhs_shape[-1], *rhs_shape[3:])
    lhs_at = (*range(space + 2), space + 3)
    rhs_at = (space + 1, space + 2, space + 3, *range(space + 4, len(shape)))
    lhs = scale.broadcast(lhs, lhs_shape, shape, lhs_at)
    rhs = scale.broadcast(rhs, rhs_shape, shape, rhs_at)
    summed = [1 + i for i in range(space) if i not in kept] + list(range(space + 3, len(shape)))
    terms = contract((args[0], lhs), (args[1], rhs), shape, summed, Why("sum", op), context)
    return [Scale(_output(terms, op, shape, kept))]


def _images(terms: Terms, op: Op, features: int, batches: int) -> tuple[Terms, Shape]:
    """The input with axes batch, space, group, channel of the group."""
    spec = op.params["dimension_numbers"].lhs_spec
    own = shape_of(op.inputs[0])
    order = (spec[0], *spec[2:], spec[1])
    now = tuple(own[a] for a in order)
    terms = scale.transpose(terms, order)
    if batches > 1:  # batch (groups, n) moves its groups to the channels
        cut = (batches, now[0] // batches, *now[1:])
        terms = scale.reshape(terms, now, cut)
        turn = (*range(1, len(cut) - 1), 0, len(cut) - 1)
        return scale.transpose(terms, turn), tuple(cut[a] for a in turn)
    new = (*now[:-1], features, now[-1] // features)
    return scale.reshape(terms, now, new), new


def _kernels(terms: Terms, op: Op, groups: int) -> tuple[Terms, Shape]:
    """The kernel with axes group, out channel of the group, in channel, window."""
    spec = op.params["dimension_numbers"].rhs_spec
    own = shape_of(op.inputs[1])
    now = tuple(own[a] for a in spec)
    new = (groups, now[0] // groups, *now[1:])
    return scale.reshape(scale.transpose(terms, spec), now, new), new


def _pointwise(op: Op, axis: int) -> bool:
    """Whether an axis of space is only passed through."""
    numbers = op.params["dimension_numbers"]
    window = op.inputs[1].shape[numbers.rhs_spec[2 + axis]]
    same = (
        op.inputs[0].shape[numbers.lhs_spec[2 + axis]]
        == op.outputs[0].shape[numbers.out_spec[2 + axis]]
    )
    return window == 1 and same and tuple(op.params["padding"][axis]) == (0, 0)


def _output(terms: Terms, op: Op, shape: Shape, kept: Sequence[int]) -> Terms:
    """From batch, kept space, groups, out channels to the axes of the result."""
    spec = op.params["dimension_numbers"].out_spec
    own = shape_of(op.outputs[0])
    now = (shape[0], *(shape[1 + i] for i in kept), *shape[-_tail(shape, op) :][:2])
    merged = (*now[:-2], math.prod(now[-2:]))
    terms = scale.reshape(terms, now, merged)
    at = (spec[0], *(spec[2 + i] for i in kept), spec[1])
    order = sorted(range(len(at)), key=lambda i: at[i])
    return scale.broadcast(
        scale.transpose(terms, order), tuple(merged[i] for i in order), own, sorted(at)
    )


def _tail(shape: Shape, op: Op) -> int:
    """Number of joint axes from the groups on."""
    return len(shape) - (len(op.params["dimension_numbers"].lhs_spec) - 1)


RULES: dict[str, Rule] = {"conv_general_dilated": conv_general_dilated}
