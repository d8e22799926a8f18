"""Depthwise convolutions on the CPU as sums over the taps of the kernel.

    out[n, p, c] = sum over taps t of  x[n, stride * p + dilation * t, c] * w[t, c]

XLA's CPU backend runs a grouped convolution 10 to 30 times slower than this sum (measured on
kernels of 3x3 and 5x5), so that simulations of mobile networks take it; on other devices, and in
functions that users get back to deploy, the operation stays what it is. The invariant: both ways
agree to rounding, with sums in float32 or wider.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.jaxpr.graph import Op
from flaxcle.paths import wide_dtype

MOST_TAPS = 64


def computed(op: Op, *operands: Any) -> list[Any]:
    """The op's outputs, by the quickest way that this device has."""
    if not _is_depthwise(op):
        return op.bind(*operands)

    def as_recorded(x: jax.Array, w: jax.Array) -> jax.Array:
        return op.bind(x, w)[0]

    arrays = map(jnp.asarray, operands)
    return [jax.lax.platform_dependent(*arrays, cpu=partial(_sum_of_taps, op), default=as_recorded)]


class Computed:
    """Action: run the op the quickest way."""

    feeds: tuple[str, ...] = ()

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        """The outputs, no taps."""
        return computed(op, *operands), {}


def _is_depthwise(op: Op) -> bool:
    if op.primitive != "conv_general_dilated":
        return False
    params: Any = op.params
    x, w = op.inputs
    numbers = params["dimension_numbers"]
    channels = x.shape[numbers.lhs_spec[1]]
    taps = math.prod(w.shape[axis] for axis in numbers.rhs_spec[2:])
    return (
        1 < channels == params["feature_group_count"] == w.shape[numbers.rhs_spec[0]]
        and params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) <= {1}
        and taps <= MOST_TAPS
        and jnp.issubdtype(x.dtype, jnp.floating)
    )


def _sum_of_taps(op: Op, x: jax.Array, w: jax.Array) -> jax.Array:
    params: Any = op.params
    numbers = params["dimension_numbers"]
    dtype = op.outputs[0].dtype
    x = x.transpose(numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
    w = w.transpose(*numbers.rhs_spec[2:], *numbers.rhs_spec[:2])[..., 0].astype(wide_dtype(dtype))
    edges = [(low, high, 0) for low, high in params["padding"]]
    x = jax.lax.pad(x.astype(w.dtype), jnp.zeros((), w.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    total = _scanned(x, w, params["window_strides"], params["rhs_dilation"])
    placed = (numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1])
    return total.transpose(np.argsort(placed).tolist()).astype(dtype)


def _scanned(
    x: jax.Array, w: jax.Array, strides: Sequence[int], dilations: Sequence[int]
) -> jax.Array:
    """The sum for x (batch, *space, channels) and w (*taps, channels), one tap a turn.

    A loop, as a hundred unrolled taps, fused with what surrounds them, compile for a minute. Its
    gradient looks at x again instead of at a copy of it for each tap.
    """
    batch, *space, channels = x.shape
    sides = zip(space, w.shape, strides, dilations, strict=False)
    spans = [size - (taps - 1) * dilation for size, taps, _, dilation in sides]
    skip = (slice(None), *(slice(None, None, stride) for stride in strides))
    counts = [-(-span // stride) for span, stride in zip(spans, strides, strict=True)]

    def add(total: jax.Array, tap: Any) -> Any:
        start, weight = tap
        none = jnp.zeros((), start.dtype)
        seen = jax.lax.dynamic_slice(x, (none, *start, none), (batch, *spans, channels))
        return total + seen[skip] * weight.reshape(*(1 for _ in x.shape[1:]), -1), None

    grid = np.stack(np.meshgrid(*map(np.arange, w.shape[:-1]), indexing="ij"), -1)
    starts = jnp.asarray(grid.reshape(-1, len(space)) * np.asarray(dilations), jnp.int32)
    taps = (starts, w.reshape(-1, channels))
    turn = jax.checkpoint(add, prevent_cse=False)
    return jax.lax.scan(turn, jnp.zeros((batch, *counts, channels), x.dtype), taps)[0]
