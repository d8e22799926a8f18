"""Several operands, element by element.

    sums, maxima, selections   all operands have one scale, the result too
    comparisons                all operands have one scale, the result has none
    products, quotients        scales multiply and divide

A zero or infinite operand suits any scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp

from flaxcle.jaxpr import Op
from flaxcle.rules import scale
from flaxcle.rules.context import Context, Rule, Why, as_number, shape_of
from flaxcle.rules.elementwise import opaque
from flaxcle.rules.scale import PLAIN, WILD, Scale, Terms

ADDITIVE = ("add", "add_any", "sub", "max", "min", "rem", "complex")
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "le_to", "lt_to", "atan2")


def operands(op: Op, args: Sequence[Scale]) -> list[Scale]:
    """The operands in the shape of the result: scalars and axes of size one are stretched."""
    target = shape_of(op.outputs[0])
    out = []
    for value, arg in zip(op.inputs, args, strict=True):
        shape = shape_of(value)
        if arg.terms and shape != target:
            arg = arg.keep(scale.broadcast(arg.terms, shape, target, range(len(shape))))
        out.append(arg)
    return out


def additive(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """One scale for all."""
    why = Why("equal", op, _constant(op, args, context))
    return [context.same(operands(op, args), shape_of(op.outputs[0]), why)]


def _constant(op: Op, args: Sequence[Scale], context: Context) -> str:
    """The number that an operand is, for the reason: `x + 1`."""
    for value, arg in zip(op.inputs, args, strict=True):
        if arg.plain and math.prod(value.shape) == 1:
            number = as_number(context.constants.of(value))
            if number is not None:
                return f"{number:g}"
    return ""


def comparison(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """One scale for all operands; the answer has none."""
    context.read += [term for arg in args for term in arg.terms]
    context.same(operands(op, args), shape_of(op.outputs[0]), Why("compare", op))
    return [PLAIN]


def select(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """The cases share one scale; the condition is a truth value or an integer."""
    return [context.same(operands(op, args)[1:], shape_of(op.outputs[0]), Why("equal", op))]


def product(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Scales multiply; a leaf times an unscaled array is still that leaf's view."""
    one, two = operands(op, args)
    if one.wild or two.wild:
        return [WILD]
    gauge = one.gauge if two.plain else two.gauge if one.plain else None
    return [Scale(multiplied(one.terms, two.terms, context), gauge=gauge)]


def multiplied(one: Terms, two: Terms, context: Context) -> Terms:
    """The terms of a product; those that cancel were read all the same."""
    out = scale.add(one, two)
    kept = {term[1:] for term in out}
    context.read += [term for term in one if term[1:] not in kept]
    return out


def quotient(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Scales divide; dividing integers rounds."""
    one, two = operands(op, args)
    if not jnp.issubdtype(op.outputs[0].dtype, jnp.inexact) or two.wild:
        return opaque(op, args, context)
    if one.wild:
        return [WILD]
    gauge = one.gauge if two.plain else None
    return [Scale(multiplied(one.terms, scale.times(-1, two.terms), context), gauge=gauge)]


def power(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """A known exponent is a power; any other one pins everything."""
    base, exponent = operands(op, args)
    number = as_number(context.constants.of(op.inputs[1]))
    if number is None or number <= 0 or exponent.terms:
        return opaque(op, args, context)
    fraction = Fraction(number).limit_denominator(64)
    if abs(float(fraction) - number) > 1e-6:
        return opaque(op, args, context)
    return [Scale(scale.times(fraction, base.terms), base.wild)]


def clamp(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Operand and bounds share one scale."""
    return additive(op, args, context)


RULES: dict[str, Rule] = {
    **dict.fromkeys(ADDITIVE, additive),
    **dict.fromkeys(COMPARISONS, comparison),
    "clamp": clamp,
    "select_n": select,
    "mul": product,
    "div": quotient,
    "pow": power,
    "nextafter": opaque,
}
