"""The range of each channel of a leaf: its largest magnitude.

    range[c] = max |W[i, c]|      over everything but the channel

Maxima are exact in any order, so ranges are the same bits on one device and on many. The invariant:
results are small float32 vectors that every device holds whole; a weight is read, never copied.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Axes = tuple[int, ...]

TAPS = 25  # windows up to 5 x 5


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
    rest = rest_of(leaf.ndim, axes)
    if math.prod(leaf.shape[axis] for axis in rest) > 1:
        leaf = _maximum(leaf, rest)
    elif rest:
        leaf = lax.squeeze(leaf, rest)
    for fold in reversed(folds):
        leaf = _folded(_unsharded(leaf, range(fold.start, fold.stop)), fold)
    return leaf


def rest_of(rank: int, axes: Container[int]) -> Axes:
    """The axes that don't stay."""
    return tuple(axis for axis in range(rank) if axis not in axes)


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


def taken(values: jax.Array, at: jax.Array) -> jax.Array:
    """The values of a vector at positions that lie in it.

    Indexing would look for negative positions first, in kernels of their own.
    """
    numbers = lax.GatherDimensionNumbers((), (0,), (0,))
    mode = lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return lax.gather(values, at[..., None], numbers, (1,), mode=mode)


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


def filled_after(number: jax.Array, shape: tuple[int, ...], value: float, dtype: Any) -> jax.Array:
    """A value everywhere, made only when a number is known.

    XLA would hold constants from the start of a program or a loop, while what comes before them
    needs memory, too.
    """
    never = (number > jnp.inf).astype(dtype)
    return replicated(jnp.full(shape, jnp.asarray(value, dtype) + never), mesh_of(number))


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
