"""Order statistics without sorting.

    x_(j) = the largest t that at most j elements are smaller than

The bits of a float, read as an integer, are in the order of the floats (of negative ones all bits
are flipped), so t is found from its highest bit to its lowest, by counting. That is some 32 passes
over the array, far less than a sort of millions of weights. The invariant: the result is an
element of the array.
"""

from __future__ import annotations

from math import floor, prod

import jax
import jax.numpy as jnp


def quantile(x: jax.Array, share: float, axes: tuple[int, ...]) -> jax.Array:
    """The quantile over `axes`, which stay with size one, between neighbours as `jnp.quantile`."""
    position = share * (prod(x.shape[k] for k in axes) - 1)
    rank, part = floor(position), position - floor(position)
    below = order_statistic(x, rank, axes)
    if part == 0:
        return below
    repeated = jnp.sum(x <= below, axes, keepdims=True) > rank + 1
    larger = jnp.min(jnp.where(x > below, x, jnp.inf), axes, keepdims=True)
    return (1 - part) * below + part * jnp.where(repeated, below, larger)


def order_statistic(x: jax.Array, rank: int, axes: tuple[int, ...]) -> jax.Array:
    """The element over `axes` that `rank` others precede; float32 or float64, without NaN."""
    bits = 8 * x.dtype.itemsize
    unsigned = jnp.dtype(f"uint{bits}")
    raw = jax.lax.bitcast_convert_type(x, unsigned)
    top = jnp.asarray(1 << (bits - 1), unsigned)
    keys = jnp.where(raw < top, raw | top, ~raw)

    def decide(k: jax.Array, found: jax.Array) -> jax.Array:
        candidate = found | (top >> k.astype(unsigned))
        smaller = jnp.sum(keys < candidate, axes, keepdims=True)
        return jnp.where(smaller <= rank, candidate, found)

    start = jnp.zeros_like(jnp.min(keys, axes, keepdims=True))
    key = jax.lax.fori_loop(0, bits, decide, start)
    return jax.lax.bitcast_convert_type(jnp.where(key < top, ~key, key ^ top), x.dtype)
