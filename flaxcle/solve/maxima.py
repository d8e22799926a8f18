"""The largest scaled weight of each row, and the position at which it stands.

    maximum[c] = max |W[i, c]| * prod_t factor_t[i, c]      over all axes but those that stay

Weights are read, never copied. The invariant: maxima are exact in any order, so the bits are the
same on one device and on many, and whether a core is reduced as a whole or tile by tile. On the
CPU a large matrix is read tile by tile: all that is asked of a tile is answered while it is in
the cache, so that the maxima along both axes and their positions cost one way through the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcle.ranges import Axes, mesh_of, replicated, rest_of

Factors = Sequence[tuple[Axes, jax.Array]]

STEEP = 2.0**80  # times which any gap between normal numbers is larger than a position over it
EXACT = 2**24  # whole numbers up to here are exact as float32
TILED = 2**22  # weights of a core that does not stay in the cache from one reduction to the next
TILE = 2**18  # weights that do


class Rows(NamedTuple):
    """What is asked of a core: the maximum of |core| times `factors` along `axes`.

    Attributes:
        axes: the axes that stay, ascending.
        factors: for each scale the axes that it lies on and its linear values there.
    """

    axes: Axes
    factors: Factors = ()


class Peaks(NamedTuple):
    """The answer, flat: float32 maxima, and their positions along the other axes.

    Of equals the last position; None where it takes a reduction of its own (`positions_of`).
    """

    value: jax.Array
    at: jax.Array | None


def peaks_of(core: jax.Array, asked: Sequence[Rows], after: Any = ()) -> list[Peaks]:
    """The peaks of weights or their magnitudes, for each of the rows asked.

    Rows of one weight are not reduced: their values then carry signs.

    Args:
        core: the weights.
        asked: the rows.
        after: what to compute before.
    """
    tile = _tile_of(core)
    if tile is None:
        return [Peaks(value.ravel(), None) for value in _maxima(core, asked, after)]

    def reduced() -> list[tuple[jax.Array, jax.Array]]:
        pairs = zip(asked, _maxima(core, asked, after), strict=True)
        return [(value, _whole(_position(core, rows, value))) for rows, value in pairs]

    tiled = lambda: _tiled(core, asked, tile, after)  # noqa: E731
    found = lax.platform_dependent(cpu=tiled, default=reduced)
    return [Peaks(value.ravel(), at.ravel()) for value, at in found]


def positions_of(core: jax.Array, rows: Rows, peaks: Peaks) -> jax.Array:
    """Where along the other axes the peaks stand, as `joined` reads it.

    What differs by less than the smallest normal number may count as equal.
    """
    if peaks.at is not None:
        return peaks.at
    value = peaks.value.reshape([core.shape[axis] for axis in rows.axes])
    return replicated(_position(core, rows, value)).ravel()


def joined(positions: Sequence[jax.Array], values: jax.Array) -> jax.Array:
    """Positions, one after the other, as whole numbers: XLA would compile each conversion alone.

    Args:
        positions: see `positions_of`.
        values: the peaks that stand there; those that are not finite get position 0.
    """
    if any(one.dtype == jnp.int32 for one in positions):
        positions = [_whole(one) for one in positions]
    whole = _whole(replicated(jnp.concatenate(positions)))
    return jnp.where(jnp.isfinite(values), whole, 0)


def _whole(positions: jax.Array) -> jax.Array:
    return positions if positions.dtype == jnp.int32 else (positions * STEEP).astype(jnp.int32)


def _maxima(core: jax.Array, asked: Sequence[Rows], after: Any) -> list[jax.Array]:
    """One after the other, for XLA would keep what several reductions share."""
    found: list[jax.Array] = []
    for axes, factors in asked:
        rest = rest_of(core.ndim, axes)
        if rest or factors:
            product = _scaled(_alone(core, factors, (after, found[-1:])))
            found.append(replicated(jnp.max(product, axis=rest)))
        else:
            found.append(replicated(core.astype(jnp.float32)))
    return found


def _position(core: jax.Array, rows: Rows, best: jax.Array) -> jax.Array:
    """The largest of position minus gap, where a gap is 0 or larger than any position.

    float32 positions over `STEEP`, while that is exact: one multiplication less for each weight.
    XLA on the CPU reduces arithmetic without a copy of the weights, but not comparisons.
    """
    rest = rest_of(core.ndim, rows.axes)
    count = math.prod(core.shape[axis] for axis in rest)
    positions = jnp.arange(count, dtype=jnp.float32) / STEEP
    # Constants would keep XLA from fusing: see _alone for the rest.
    best, positions, steep = lax.optimization_barrier((best, positions, jnp.float32(STEEP)))
    gap = (_along(best, rows.axes, core) - _scaled(_alone(core, rows.factors, best))) * steep
    if count > EXACT:
        gap = jnp.minimum(gap * steep, 2.0**30).astype(jnp.int32)
        positions = jnp.arange(count, dtype=jnp.int32)
    return jnp.max(_along(positions, rest, core) - gap, axis=rest)


class _Tile(NamedTuple):
    """Some slices along an axis."""

    axis: int
    slices: int


def _tile_of(core: jax.Array) -> _Tile | None:
    """The tiles of a core that is read by them; None for one that is reduced as a whole.

    On a mesh a tile would have to travel.
    """
    if core.ndim < 2 or core.size < TILED or not mesh_of(core).empty:
        return None
    axis = int(np.argmax(core.shape[:-1]))
    count = max(1, TILE * core.shape[axis] // core.size)
    return _Tile(axis, count) if count < core.shape[axis] else None


def _tiled(
    core: jax.Array, asked: Sequence[Rows], tile: _Tile, after: Any
) -> list[tuple[jax.Array, jax.Array]]:
    """Maxima and positions in the shape of the axes that stay.

    The barrier in the loop keeps XLA from converting all weights to float32 before it.
    """
    axis, last = tile.axis, core.shape[tile.axis] - tile.slices
    arrays = [_alone(core, rows.factors, after) for rows in asked]
    meets = [_meeting(core, rows, tile) for rows in asked]
    shapes = [[core.shape[axis] for axis in rows.axes] for rows in asked]
    none = [(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)) for shape in shapes]

    def step(number: jax.Array, known: Any) -> Any:
        first = jnp.minimum(number * tile.slices, last)  # some slices are read twice at the end
        cut = lambda x: lax.dynamic_slice_in_dim(x, first, tile.slices, axis)  # noqa: E731
        held, _ = lax.optimization_barrier((arrays, number))
        parts = [[cut(x) if x.shape[axis] > 1 else x for x in own] for own in held]
        ways = zip(meets, known, parts, strict=True)
        return [meet(*one, _scaled(part), first) for meet, one, part in ways]

    return lax.fori_loop(0, -(-core.shape[axis] // tile.slices), step, none)


def _meeting(
    core: jax.Array, rows: Rows, tile: _Tile
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """How what is known of the rows meets the scaled weights of a tile."""
    rest = rest_of(core.ndim, rows.axes)
    extent = [core.shape[axis] for axis in rest]
    place = np.arange(math.prod(extent), dtype=np.int32).reshape(extent)
    if tile.axis in rest:
        place = place.take(np.arange(tile.slices), rest.index(tile.axis))
    place = np.expand_dims(place, rows.axes)
    stride = math.prod(core.shape[axis] for axis in rest if axis > tile.axis)

    def meet(
        best: jax.Array, at: jax.Array, product: jax.Array, first: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        top = lax.optimization_barrier(jnp.max(product, rest, keepdims=True))
        where = jnp.max(jnp.where(product == top, place, 0), rest)
        top = lax.squeeze(top, rest)
        if tile.axis in rows.axes:
            here = rows.axes.index(tile.axis)
            set_at = lambda x, new: lax.dynamic_update_slice_in_dim(x, new, first, here)  # noqa: E731
            return set_at(best, top), set_at(at, where)
        at = jnp.where(top >= best, where + first * stride, at)
        return jnp.maximum(best, top), at

    return meet


def _scaled(arrays: Sequence[jax.Array]) -> jax.Array:
    """The magnitudes of weights times factors, in float32."""
    core, *factors = arrays
    return jnp.abs(reduce(jnp.multiply, factors, core.astype(jnp.float32)))


def _alone(core: jax.Array, factors: Factors, after: Any) -> list[jax.Array]:
    """The weights, and factors that broadcast with them, for one reduction alone.

    Without the barrier XLA would find that several reductions need the scaled weights, or the
    weights in float32, or a vector broadcast to their shape, and keep a copy as large as they are.
    """
    values = [factor for _, factor in factors]
    core, values, _ = lax.optimization_barrier((core, values, after))
    lie = zip(factors, values, strict=True)
    return [core, *(_along(value, axes, core) for (axes, _), value in lie)]


def _along(values: jax.Array, axes: Axes, core: jax.Array) -> jax.Array:
    """Values on `axes`, which broadcast with the core."""
    return values.reshape([n if axis in axes else 1 for axis, n in enumerate(core.shape)])
