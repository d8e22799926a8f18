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
from jax.custom_derivatives import SymbolicZero

from flaxcle.paths import wide_dtype


class Grid(NamedTuple):
    """Scale and zero point (broadcastable arrays), and the lowest and highest integer."""

    scale: jax.Array
    zero: jax.Array
    lowest: int
    highest: int


def make_grid(low: jax.Array, high: jax.Array, bits: int, *, symmetric: bool) -> Grid:
    """The grid of `bits` bits over [low, high], widened to hold zero.

    Differentiable in both ends, with the rounding of the zero point passed straight through. An
    end at zero gets no gradient: what follows a ReLU never needs negative values.
    """
    low, high = jnp.where(low < 0, low, 0), jnp.where(high > 0, high, 0)
    if symmetric:
        top = 2 ** (bits - 1) - 1
        scale = _nonzero(jnp.maximum(-low, high) / top)
        return Grid(scale, jnp.zeros_like(scale), -top, top)
    top = 2**bits - 1
    scale = _nonzero((high - low) / top)
    return Grid(scale, _round(-low / scale), 0, top)


@jax.custom_jvp
def _round(x: jax.Array) -> jax.Array:
    return jnp.round(x)


@_round.defjvp
def _through(primals: Any, tangents: Any) -> Any:
    return jnp.round(primals[0]), tangents[0]


def _nonzero(scale: jax.Array) -> jax.Array:
    """A tensor that is all zero gets scale 1: its grid value is exact.

    So does one whose step would not be a normal number, which accelerators flush to zero.
    """
    smallest = jnp.finfo(scale.dtype).tiny
    return jnp.where(scale >= smallest, scale, jnp.ones_like(scale))


def snap(x: jax.Array, grid: Grid) -> jax.Array:
    """The nearest grid value of each element, with straight-through gradients.

                      inside the grid         where clipped
        d / dx        1                       0
        d / dscale    round(x / s) - x / s    lowest - zero, or highest - zero
        d / dzero     0                       -s

    (Esser et al. 2020, "LSQ", arXiv:1902.08153, eq. 3; with a zero point Bhalgat et al. 2020,
    arXiv:2004.09576, eq. 5 and 6). Computed in float32 or wider, returned in x's dtype.
    """
    wide = wide_dtype(x.dtype)
    scale, zero = (part.astype(wide) for part in grid[:2])
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


def _straight_through(lowest: float, highest: float, primals: Any, tangents: Any) -> Any:
    x, scale, zero = primals
    out = _snap(x, scale, zero, lowest, highest)
    q = _integers(x, scale, zero)
    inside = (q >= lowest) & (q <= highest)
    move, stretch, shift = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    total = jnp.zeros_like(out)
    if move is not None:
        total = jnp.where(inside, move, total)
    if stretch is not None:
        total += (out - jnp.where(inside, x, 0)) / scale * stretch
    if shift is not None:
        total -= jnp.where(inside, 0, scale) * shift
    return out, total


_snap.defjvp(_straight_through, symbolic_zeros=True)
