"""Ranges on the weights themselves: how large each channel is, and which entry makes it so.

Only here are weights read. Everything else works on the entries that were found: an entry keeps
its magnitude at scale 1, `value`, and the numbers of the exponents that scale it, so

    range = max over entries of value + sum exponents[others]

The invariant: an entry that attained a maximum once is a lower bound of that range for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcle.ranges import (
    Factors,
    channel_maximum,
    is_identity,
    mesh_of,
    replicated,
    scaled_maximum,
    where_maximum,
)
from flaxcle.solve.layout import Layout
from flaxcle.solve.plan import Link

SLOTS = 8  # entries remembered for each searched row
Cores = Mapping[str, jax.Array]


class Reading(NamedTuple):
    """The ranges of the searched rows at some scales.

    Attributes:
        exponents: the scales.
        best: for each searched link the linear maximum at each of its positions.
        range: for each row its log2 range, scaled by all groups but the row's own.
    """

    exponents: jax.Array
    best: tuple[jax.Array, ...]
    range: jax.Array


class Entries(NamedTuple):
    """Entries of the searched rows: log2 magnitude at scale 1, and the exponents that scale it.

    Shapes: `value` (slots, rows), `others` (slots, depth, rows).
    """

    value: jax.Array
    others: jax.Array

    @classmethod
    def none(cls, layout: Layout, reading: Reading) -> Entries:
        """Room for `SLOTS` entries of each row."""
        mesh, rows = mesh_of(reading.range), reading.range.size
        others = jnp.zeros((SLOTS, layout.depth, rows), jnp.int32)
        value = jnp.full((SLOTS, rows), -jnp.inf)
        return cls(replicated(value, mesh), replicated(others, mesh))

    def ranges(self, rows: slice, exponents: jax.Array) -> jax.Array:
        """The log2 range of some rows, as far as these entries know."""
        scaled = self.value[:, rows] + jnp.sum(exponents[self.others[:, :, rows]], axis=1)
        return jnp.max(scaled, axis=0)


def read(layout: Layout, cores: Cores, exponents: jax.Array) -> Reading:
    """Reads the weights once for the ranges of the searched rows."""
    linear = replicated(jnp.exp2(exponents))
    best = tuple(
        scaled_maximum(cores[link.leaf], _factors(layout, link, linear), link.axes)
        for link in layout.searched
    )
    tops = [
        channel_maximum(top, link.ids, layout.size_of(link))
        for top, link in zip(best, layout.searched, strict=True)
    ]
    return Reading(exponents, best, log2_of(tops, mesh_of(exponents)))


def remember(
    entries: Entries, layout: Layout, cores: Cores, reading: Reading, slot: jax.Array
) -> Entries:
    """Reads the weights once more for the entries that have the ranges, and adds them."""
    linear = replicated(jnp.exp2(reading.exponents))
    parts = [jnp.zeros((layout.depth, 0), jnp.int32)]
    for link, best in zip(layout.searched, reading.best, strict=True):
        factors = _factors(layout, link, linear)
        along = where_maximum(cores[link.leaf], factors, link.axes, best)
        at = _winners(best, link.ids, layout.size_of(link))
        parts.append(layout.others(link, at, along[at]))
    others = jnp.concatenate(parts, axis=1)
    value = reading.range - jnp.sum(reading.exponents[others], axis=0)
    return Entries(
        lax.dynamic_update_index_in_dim(entries.value, value, slot, 0),
        lax.dynamic_update_index_in_dim(entries.others, others, slot, 0),
    )


def still_ranges(layout: Layout, cores: Cores, mesh: Any) -> jax.Array:
    """The log2 ranges at scale 1 of the links that are not searched."""
    tops = []
    for link in layout.still:
        best = scaled_maximum(cores[link.leaf], (), link.axes)
        tops.append(channel_maximum(best, link.ids, layout.size_of(link)))
    return log2_of(tops, mesh)


def log2_of(parts: list[jax.Array], mesh: Any) -> jax.Array:
    """The logarithms of all parts in one vector, computed as one: XLA would compile each alone."""
    joined = jnp.concatenate([jnp.zeros(0, jnp.float32), *parts])
    return jnp.log2(lax.optimization_barrier(replicated(joined, mesh)))


def _factors(layout: Layout, link: Link, linear: jax.Array) -> Factors:
    others = layout.plan.leaves[link.leaf].others(link)
    return [(other.axes, layout.along(linear, other)) for other in others]


def _winners(best: jax.Array, ids: np.ndarray, size: int) -> jax.Array:
    """The position at which each channel has its maximum; 0 for a channel without position."""
    if is_identity(ids, size):
        return jnp.arange(size)
    top = channel_maximum(best, ids, size)
    wins = best == jnp.append(top, 0.0)[ids.ravel()]
    return channel_maximum(jnp.where(wins, jnp.arange(ids.size), 0), ids, size)
