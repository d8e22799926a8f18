"""The arithmetic of folding.

    g = s / sqrt(f v + eps)       kernel *= g,  bias *= g,  m := 0,  v := (1 - eps) / f,  s := 1,
                                  b := b - f m g

so that `(x - f m) r s + b` is the same function of the layer's input. The invariant: a norm that is
already folded has g = 1 and m = 0, for f = 1 exactly, and nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from flaxcle.fold.match import Norm
from flaxcle.fold.producer import Producer
from flaxcle.jaxpr.layout import Layout
from flaxcle.paths import dtype_of
from flaxcle.ranges import replicated

Leaves = Mapping[str, Any]


class Move(NamedTuple):
    """A norm, and the layer that takes its gain (None: the norm keeps it in its scale)."""

    norm: Norm
    producer: Producer | None

    @property
    def paths(self) -> tuple[str, ...]:
        """The leaves that change."""
        layer = (self.producer.weight, *self.producer.biases) if self.producer else ()
        return (*self.norm.paths, *(placed.path for placed in layer))


@lru_cache(maxsize=64)
def compiled(
    moves: tuple[Move, ...], shardings: tuple[tuple[str, Any], ...] | None
) -> Callable[[Leaves], dict[str, jax.Array]]:
    """All moves as one jitted function from leaves to the leaves that they change."""

    def apply(leaves: Leaves) -> dict[str, jax.Array]:
        new: dict[str, jax.Array] = {}
        for move in moves:
            new.update(_moved(move, leaves))
        return {path: _like(value, leaves[path]) for path, value in new.items()}

    return jax.jit(apply, out_shardings=dict(shardings) if shardings else None)


def _moved(move: Move, leaves: Leaves) -> dict[str, jax.Array]:
    """Gain and shift of the norm, wherever they go."""
    norm = move.norm
    dtypes = (dtype_of(leaves[path]) for path in move.paths)
    wide = max(jnp.dtype(jnp.float32), *dtypes, key=lambda dtype: dtype.itemsize)
    rows = {path: _rows(leaves[path], norm.scans, wide) for path in norm.paths}
    divisor = jnp.asarray(1 / norm.factor, wide)  # the network divides, too
    gain = 1 / jnp.sqrt(rows[norm.var] / divisor + jnp.asarray(norm.eps, wide))
    gain = gain if norm.scale is None else gain * rows[norm.scale]
    new = _layer(move.producer, gain, leaves, norm.scans)
    shift = -rows[norm.mean] / divisor * gain
    if move.producer is not None or norm.scale is not None:
        new[norm.var] = jnp.full_like(gain, unit_variance(norm, leaves[norm.var]))
    if norm.scale is not None:
        new[norm.scale] = gain if move.producer is None else jnp.ones_like(gain)
    if norm.bias is not None:
        new[norm.bias] = rows[norm.bias] + shift
    elif move.producer is not None and move.producer.biases:
        first = move.producer.biases[0]
        new[first.path] += _spread(shift, first.layout, leaves[first.path].shape, norm.scans)
    elif move.producer is not None:
        return {**new, norm.mean: -shift * divisor}
    else:
        return new
    return {**new, norm.mean: jnp.zeros_like(gain)}


def _layer(
    producer: Producer | None, gain: jax.Array, leaves: Leaves, scans: int
) -> dict[str, jax.Array]:
    new: dict[str, jax.Array] = {}
    for path, layout in (producer.weight, *producer.biases) if producer is not None else ():
        leaf = jnp.asarray(leaves[path]).astype(gain.dtype)
        new[path] = leaf * _spread(gain, layout, leaf.shape, scans)
    return new


def _rows(leaf: Any, scans: int, dtype: Any) -> jax.Array:
    """A norm's leaf as (scanned axes ..., channels)."""
    leaf = replicated(jnp.asarray(leaf).astype(dtype))
    return leaf.reshape(*leaf.shape[:scans], -1)


def _spread(row: jax.Array, layout: Layout, shape: tuple[int, ...], scans: int) -> jax.Array:
    """The values of the channels, shaped to meet a leaf."""
    rest = shape[scans:]
    extent = [size if axis in layout.axes else 1 for axis, size in enumerate(rest)]
    return row[..., np.asarray(layout.index, np.int32)].reshape(*shape[:scans], *extent)


def unit_variance(norm: Norm, leaf: Any) -> Any:
    """The variance v for which factor * v + eps is 1 in the arithmetic of the network.

    In float32 and float64 that is exact for a factor of 1; else it comes as near as it can.
    """
    kind, sum_kind = dtype_of(leaf), jnp.dtype(norm.dtype)
    eps = np.asarray(norm.eps).astype(sum_kind)
    middle = np.asarray((1 - norm.eps) / norm.factor).astype(kind)
    near = (middle, np.nextafter(middle, kind.type(0)), np.nextafter(middle, kind.type(2)))
    scaled = lambda v: np.asarray(float(v) * norm.factor).astype(sum_kind)  # noqa: E731
    return min(near, key=lambda v: abs(float(scaled(v) + eps) - 1))


def _like(value: jax.Array, leaf: Any) -> jax.Array:
    """A result in the shape, dtype, weak type and explicit sharding of the leaf."""
    leaf = jnp.asarray(leaf)
    out = value.reshape(leaf.shape).astype(leaf.dtype)
    sharding = jax.typeof(leaf).sharding
    if AxisType.Explicit in sharding.mesh.axis_types:
        out = jax.sharding.reshard(out, sharding)
    return leaf.at[...].set(out) if leaf.weak_type else out
