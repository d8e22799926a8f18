"""Integer grids: range -> scale and zero point -> nearest grid value.

    asymmetric:  scale = (hi - lo) / (2**b - 1),      zero = round(-lo / scale),  q in [0, 2**b - 1]
    symmetric:   scale = max(|lo|, |hi|) / (2**(b-1) - 1),  zero = 0,  |q| <= 2**(b-1) - 1
    fake quantization:  x -> (clip(round(x / scale) + zero) - zero) * scale

The invariant: the range is widened to hold zero, and zero is a grid value (Jacob et al. 2018,
arXiv:1712.05877, eq. 1 to 3; Nagel et al. 2021, arXiv:2106.08295, eq. 4 to 9).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxcle.paths import wide_dtype


class Grid(NamedTuple):
    """Scale and zero point (broadcastable arrays), and the lowest and highest integer."""

    scale: jax.Array
    zero: jax.Array
    lowest: int
    highest: int


def make_grid(low: jax.Array, high: jax.Array, bits: int, *, symmetric: bool) -> Grid:
    """The grid of `bits` bits over [low, high], widened to hold zero."""
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = _nonzero(jnp.maximum(-low, high) / top)
        return Grid(scale, jnp.zeros_like(scale), -top, top)
    top = 2**bits - 1
    scale = _nonzero((high - low) / top)
    return Grid(scale, jnp.round(-low / scale), 0, top)


def _nonzero(scale: jax.Array) -> jax.Array:
    """A tensor that is all zero gets scale 1: its grid value is exact.

    So does one whose step would not be a normal number, which accelerators flush to zero.
    """
    smallest = jnp.finfo(scale.dtype).tiny
    return jnp.where(scale >= smallest, scale, jnp.ones_like(scale))


def snap(x: jax.Array, grid: Grid) -> jax.Array:
    """The nearest grid value of each element, with straight-through gradients.

    d snap(x) / dx is 1 where x lies inside the grid's range and 0 where it is clipped; the grid
    itself gets no gradient. Computed in float32 or wider, returned in x's dtype.
    """
    wide = wide_dtype(x.dtype)
    scale, zero = (jax.lax.stop_gradient(part).astype(wide) for part in grid[:2])
    out = _snap(x.astype(wide), scale, zero, float(grid.lowest), float(grid.highest))
    return out.astype(x.dtype)


def _integers(x: jax.Array, scale: jax.Array, zero: jax.Array) -> jax.Array:
    return jnp.round(x / scale) + zero


def _round_to_grid(
    x: jax.Array, scale: jax.Array, zero: jax.Array, lowest: float, highest: float
) -> jax.Array:
    q = jnp.clip(_integers(x, scale, zero), lowest, highest)
    return (q - zero) * scale


_snap = jax.custom_jvp(_round_to_grid, nondiff_argnums=(3, 4))


@_snap.defjvp
def _straight_through(lowest: float, highest: float, primals: Any, tangents: Any) -> Any:
    x, scale, zero = primals
    q = _integers(x, scale, zero)
    inside = (q >= lowest) & (q <= highest)
    return _snap(x, scale, zero, lowest, highest), jnp.where(inside, tangents[0], 0)
