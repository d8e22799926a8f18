"""The range of each channel of a leaf: its largest magnitude, with other groups' scales applied.

    range[c] = max |W[i, c]| * prod_t factor_t[i, c]      over everything but the channel

Maxima are exact in any order, so ranges are the same bits on one device and on many. The invariant:
results are small float32 vectors that every device holds whole; a weight is read, never copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Axes = tuple[int, ...]
Factors = Sequence[tuple[Axes, jax.Array]]


TINY = 2.0**-126  # the smallest normal float32
TAPS = 25  # windows up to 5 x 5
EXACT = 2**24  # whole numbers up to here are exact as float32


class Fold(NamedTuple):
    """Kept axes that hold each channel `tile * repeat` times: `start` to `stop`, as (t, c, r)."""

    start: int
    stop: int
    tile: int
    channels: int
    repeat: int


def core_of(leaf: Any, axes: Axes, folds: Sequence[Fold] = ()) -> jax.Array:
    """What a sweep needs of a leaf: the largest magnitude at each position along `axes`.

    A leaf without further axes is not copied: its core then carries signs.

    Args:
        leaf: an array of any float dtype.
        axes: the axes that stay, ascending.
        folds: kept axes to be reduced to channels, numbered after the reduction, ascending.
    """
    leaf = jnp.asarray(leaf)
    rest = tuple(axis for axis in range(leaf.ndim) if axis not in axes)
    if math.prod(leaf.shape[axis] for axis in rest) > 1:
        leaf = _maximum(leaf, rest)
    elif rest:
        leaf = lax.squeeze(leaf, rest)
    for fold in reversed(folds):
        leaf = _folded(_unsharded(leaf, range(fold.start, fold.stop)), fold)
    return leaf


def _maximum(leaf: jax.Array, rest: Axes) -> jax.Array:
    """The largest magnitude over `rest`; over leading taps as one chain of elementwise maxima.

    XLA on the CPU vectorizes the chain, but not that reduction, which takes 20 times as long. On a
    mesh the taps may be cut, and one of them alone would have to travel.
    """
    extent = tuple(leaf.shape[axis] for axis in rest)
    leading = rest == tuple(range(len(rest))) and math.prod(extent) <= TAPS
    if not leading or not mesh_of(leaf).empty:
        return jnp.max(jnp.abs(leaf), axis=rest)
    return reduce(jnp.maximum, (jnp.abs(leaf[tap]) for tap in np.ndindex(extent)))


def scaled_maximum(core: jax.Array, factors: Factors, axes: Axes, after: Any = ()) -> jax.Array:
    """The maximum of |core| times `factors` at each position along `axes`, flat and float32.

    Args:
        core: weights or their magnitudes.
        factors: for each scale the axes that it lies on and its linear values there.
        axes: the axes that stay, ascending.
        after: what to compute before.
    """
    rest = tuple(axis for axis in range(core.ndim) if axis not in axes)
    return replicated(jnp.max(_product(core, factors, after), axis=rest)).ravel()


def where_maximum(core: jax.Array, factors: Factors, axes: Axes, best: jax.Array) -> jax.Array:
    """Where along the other axes `scaled_maximum` stands: flat positions, the last of equals.

    The largest of position minus gap, where a gap is 0 or larger than any position: XLA on the CPU
    reduces arithmetic without a copy of the weights, but not comparisons. What differs by less than
    the smallest normal number counts as equal.
    """
    rest = tuple(axis for axis in range(core.ndim) if axis not in axes)
    positions = jnp.arange(math.prod(core.shape[axis] for axis in rest), dtype=jnp.float32)
    positions, best = lax.optimization_barrier((positions, best))  # see _product
    steep = _along(2.0**28 * lax.rsqrt(jnp.maximum(best, TINY)), axes, core.shape)
    gap = (_along(best, axes, core.shape) - _product(core, factors, best)) * steep * steep
    if positions.size > EXACT:
        gap = jnp.minimum(gap, 2.0**30).astype(jnp.int32)
        positions = jnp.arange(positions.size, dtype=jnp.int32)
    at = replicated(jnp.max(_along(positions, rest, core.shape) - gap, axis=rest))
    known = (at > 0) & (at < positions.size)  # not so where the maximum is not finite
    return jnp.where(known, at, 0).astype(jnp.int32).ravel()


def channel_maximum(values: jax.Array, channels: np.ndarray, size: int) -> jax.Array:
    """The largest value of each channel; 0 for a channel that no position names.

    Args:
        values: non-negative, one for each position.
        channels: for each position its channel, -1 for none.
        size: number of channels.
    """
    if is_identity(channels, size):
        return values
    named = np.where(channels.ravel() >= 0, channels.ravel(), size)
    start = replicated(jnp.zeros(size, values.dtype), mesh_of(values))
    return start.at[named].max(values, mode="drop")


def is_identity(channels: np.ndarray, size: int) -> bool:
    """Whether position i is channel i."""
    return channels.size == size and np.array_equal(channels.ravel(), np.arange(size))


def mesh_of(*arrays: Any) -> Any:
    """The mesh that arrays live on; an empty one when they are on a single device."""
    meshes = [jax.typeof(array).sharding.mesh for array in arrays]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


def replicated(values: jax.Array, mesh: Any = None) -> jax.Array:
    """The same values, whole on every device of a mesh (their own by default).

    Automatic sharding would else cut the solver's small vectors as it likes, which costs messages
    in every sweep and changes the order of sums.
    """
    mesh = mesh_of(values) if mesh is None else mesh
    if mesh.empty:
        return values
    whole = NamedSharding(mesh, PartitionSpec(*[None] * values.ndim))
    if AxisType.Explicit in mesh.axis_types:
        return jax.sharding.reshard(values, whole)
    return lax.with_sharding_constraint(values, whole)


def _unsharded(values: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The values with explicitly sharded `axes` gathered."""
    sharding = jax.typeof(values).sharding
    if all(sharding.spec[axis] is None for axis in axes):
        return values
    spec = [None if axis in axes else name for axis, name in enumerate(sharding.spec)]
    return jax.sharding.reshard(values, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def _folded(core: jax.Array, fold: Fold) -> jax.Array:
    shape = (fold.tile, fold.channels, fold.repeat)
    split = core.reshape(core.shape[: fold.start] + shape + core.shape[fold.stop :])
    return jnp.max(jnp.abs(split), axis=(fold.start, fold.start + 2))


def _product(core: jax.Array, factors: Factors, after: Any) -> jax.Array:
    """The scaled magnitudes, for one reduction alone.

    Without the barrier XLA would find that several reductions need them, or the weights in
    float32, or a vector broadcast to their shape, and keep a copy as large as the weights.
    """
    values = [factor for _, factor in factors]
    core, values, _ = lax.optimization_barrier((core, values, after))
    out = core.astype(jnp.float32)
    for (axes, _), factor in zip(factors, values, strict=True):
        out = out * _along(factor, axes, core.shape)
    return jnp.abs(out)


def _along(values: jax.Array, axes: Axes, shape: tuple[int, ...]) -> jax.Array:
    """Values on `axes` broadcast to `shape`."""
    kept = [size if axis in axes else 1 for axis, size in enumerate(shape)]
    return jnp.broadcast_to(values.reshape(kept), shape)
