"""One operand, element by element: what a positive scale s does to f.

f(s x) = s f(x)      identity-like: negation, absolute value, casts
f(s x) = s**p f(x)   powers
f(s x) = f(x)        signs and tests
otherwise            s must be 1
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp

from flaxcle.jaxpr import Op
from flaxcle.rules import scale
from flaxcle.rules.context import Context, Rule, Why, shape_of
from flaxcle.rules.scale import PLAIN, Scale

IDENTITIES = (
    "neg",
    "abs",
    "copy",
    "copy_p",
    "stop_gradient",
    "reduce_precision",
    "sharding_constraint",
    "layout_constraint",
    "mesh_cast",
    "device_put",
    "name",
    "real",
    "imag",
    "conj",
    "pvary",
    "pcast",
)
POWERS = {
    "sqrt": Fraction(1, 2),
    "rsqrt": Fraction(-1, 2),
    "cbrt": Fraction(1, 3),
    "square": 2,
}
INVARIANT = ("sign", "is_finite", "not", "population_count", "clz")
OPAQUE = (
    *("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "sin", "cos", "tan", "asin"),
    *("acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv"),
    *("lgamma", "digamma", "bessel_i0e", "bessel_i1e", "floor", "ceil", "round"),
    *("cumprod", "cumlogsumexp", "bitcast_convert_type"),
)


def identity(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Every output carries the scale of its operand."""
    return list(args)


def opaque(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """No scale passes: all operands are pinned."""
    for value, arg in zip(op.inputs, args, strict=True):
        context.pin(arg, shape_of(value), Why("opaque", op))
    return [PLAIN] * len(op.outputs)


def invariant(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """The result does not change at all."""
    context.read += args[0].terms
    return [PLAIN]


def convert(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """A cast between floats; integers round, truth values only ask for zero."""
    dtype = op.outputs[0].dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        return args
    return (
        invariant(op, args, context)
        if jnp.issubdtype(dtype, jnp.bool_)
        else opaque(op, args, context)
    )


def power(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """f(s x) = s**p f(x)."""
    exponent = op.params["y"] if op.primitive == "integer_pow" else POWERS[op.primitive]
    (arg,) = args
    return [PLAIN if exponent == 0 else Scale(scale.times(exponent, arg.terms), arg.wild)]


RULES: dict[str, Rule] = {
    **dict.fromkeys((*IDENTITIES, "optimization_barrier"), identity),
    **dict.fromkeys((*POWERS, "integer_pow"), power),
    **dict.fromkeys(INVARIANT, invariant),
    **dict.fromkeys(OPAQUE, opaque),
    "convert_element_type": convert,
}
