"""Elementwise ops: run at the points of the common Gaussian behind their operands.

    E[f(x)] = sum_k w_k f(x_k)       for relu, clips, gelu, silu, hard swish, selects, x * g(x), ...
    E[x + y] = E[x] + E[y],   Var[x + y] = Var[x] + Var[y]       for independent x and y

The invariant: a product or maximum of values with different Gaussians behind them is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from flaxcle.bias.moments.known import Known, gaussian
from flaxcle.jaxpr import Op

ELEMENTWISE = (
    *("add", "add_any", "sub", "mul", "div", "rem", "pow", "max", "min", "nextafter", "atan2"),
    *("neg", "abs", "sign", "square", "integer_pow", "sqrt", "rsqrt", "cbrt", "clamp", "select_n"),
    *("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "erfc", "erf_inv"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    *("floor", "ceil", "round", "is_finite", "eq", "ne", "lt", "le", "gt", "ge"),
    *("and", "or", "xor", "not", "convert_element_type", "reduce_precision", "copy", "copy_p"),
    *("stop_gradient", "name"),
)
_SUMS = ("add", "add_any", "sub")
_KEEP_ERROR = (*_SUMS, "mul", "div", "neg", "convert_element_type", "copy", "copy_p")


def elementwise(op: Op, operands: Sequence[Known]) -> Known | None:
    """The op at every point."""
    rank = len(op.outputs[0].shape)
    operands = [_ranked(operand, rank) for operand in operands]
    random = [operand for operand in operands if operand.latent is not None]
    if len({operand.latent for operand in random}) > 1:
        return _sum(op, random) if op.primitive in _SUMS else None
    points = jnp.broadcast_arrays(*(operand.points for operand in operands))
    (out,) = op.bind(*points)
    return Known(out, random[0].latent if random else None, _error(op, operands))


def _ranked(operand: Known, rank: int) -> Known:
    """A scalar beside arrays, with axes of size one."""
    if len(operand.shape) == rank:
        return operand
    return Known(operand.points.reshape(-1, *(1,) * rank), operand.latent)


def _sum(op: Op, operands: Sequence[Known]) -> Known:
    one, two = operands
    sign = -1.0 if op.primitive == "sub" else 1.0
    out = op.outputs[0]
    return gaussian(one.mean + sign * two.mean, one.var + two.var, id(out), out.dtype)


def _error(op: Op, operands: Sequence[Known]) -> np.ndarray | None:
    """The error behind arithmetic with constants; another activation hides it."""
    random = [k for k, operand in enumerate(operands) if operand.latent is not None]
    if len(random) != 1 or op.primitive not in _KEEP_ERROR:
        return None
    (k,) = random
    error = operands[k].error
    if error is None or (op.primitive == "div" and k == 1):
        return None
    if op.primitive in ("mul", "div"):
        other = operands[1 - k].mean
        return error * other if op.primitive == "mul" else error / other
    negative = op.primitive == "neg" or (op.primitive == "sub" and k == 1)
    return -error if negative else error
