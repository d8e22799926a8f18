"""Weights on their grid: unlike an activation, a weight is at hand, so its range is its own.

    minmax       smallest and largest value
    percentile   the values that leave (100 - p) percent out, half of it at each end
    mse          the clipping fraction f of [f min, f max] with the least squared error

The invariant: one range per tensor, or one per position along the output channels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flaxcle.paths import wide_dtype
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.grid import make_grid, snap
from flaxcle.quantize.observe import best_fraction

Range = tuple[jax.Array, jax.Array]


def snap_weight(w: jax.Array, config: QuantConfig, channel_axes: tuple[int, ...]) -> jax.Array:
    """A weight on its own grid: one scale, or one per position along `channel_axes`."""
    bits = config.weight_bits
    if bits is None:
        return w
    wide = jax.lax.stop_gradient(w).astype(wide_dtype(w.dtype))
    kept = channel_axes if config.weight_granularity == "per_channel" else ()
    rest = tuple(k for k in range(w.ndim) if k not in kept)
    low, high = _range(wide, rest, config, bits)
    return snap(w, make_grid(low, high, bits, symmetric=config.weight_symmetric))


def _range(w: jax.Array, rest: tuple[int, ...], config: QuantConfig, bits: int) -> Range:
    """The range over the axes `rest`, which stay with size one."""
    if config.weight_observer == "percentile":
        tail = (100.0 - config.percentile) / 2
        ends = jnp.percentile(w, jnp.array([tail, 100.0 - tail], w.dtype), rest, keepdims=True)
        return ends[0], ends[1]
    low, high = jnp.min(w, rest, keepdims=True), jnp.max(w, rest, keepdims=True)
    if config.weight_observer == "minmax":
        return low, high

    def error(fraction: jax.Array) -> jax.Array:
        grid = make_grid(fraction * low, fraction * high, bits, symmetric=config.weight_symmetric)
        return jnp.sum((w - snap(w, grid)) ** 2, rest, keepdims=True)

    best = best_fraction(error, w.dtype)
    return best * low, best * high
