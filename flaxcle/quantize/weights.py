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
from flaxcle.quantize.grid import Grid, make_grid, snap
from flaxcle.quantize.observe import best_fraction
from flaxcle.quantize.order import quantile
from flaxcle.ranges import rest_of

Range = tuple[jax.Array, jax.Array]


def snap_weight(w: jax.Array, config: QuantConfig, channel_axes: tuple[int, ...]) -> jax.Array:
    """A weight on its own grid: one scale, or one per position along `channel_axes`."""
    return w if config.weight_bits is None else snap(w, weight_grid(w, config, channel_axes))


def weight_grid(w: jax.Array, config: QuantConfig, channel_axes: tuple[int, ...]) -> Grid:
    """The grid of a weight that is not left in float."""
    assert config.weight_bits is not None
    low, high = weight_range(w, config, channel_axes)
    return make_grid(low, high, config.weight_bits, symmetric=config.weight_symmetric)


def weight_range(w: jax.Array, config: QuantConfig, channel_axes: tuple[int, ...]) -> Range:
    """The range of a weight, in float32 or wider; axes with one range in all have size one."""
    w = jax.lax.stop_gradient(w).astype(wide_dtype(w.dtype))
    kept = channel_axes if config.weight_granularity == "per_channel" else ()
    rest = rest_of(w.ndim, kept)
    if config.weight_observer == "percentile":
        tail = (100.0 - config.percentile) / 200.0
        return quantile(w, tail, rest), quantile(w, 1.0 - tail, rest)
    low, high = jnp.min(w, rest, keepdims=True), jnp.max(w, rest, keepdims=True)
    if config.weight_observer == "minmax":
        return low, high
    bits, symmetric = config.weight_bits or 8, config.weight_symmetric

    def error(fraction: jax.Array) -> jax.Array:
        grid = make_grid(fraction * low, fraction * high, bits, symmetric=symmetric)
        return jnp.sum((w - snap(w, grid)) ** 2, rest, keepdims=True)

    best = best_fraction(error, w.dtype)
    return best * low, best * high
