"""The search of the weights: how large each channel is now, and which entry makes it so.

Weights are read here and nowhere else in the solver. `read` gives the ranges at some scales,
`remember` reads once more for the entries behind them. The invariant: both see the same bits.
"""

from __future__ import annotations

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
from flaxcle.solve.entries import Cores, Entries, exponents_along, log2_of, scaling
from flaxcle.solve.layout import Layout
from flaxcle.solve.plan import Link

SLOTS = 4  # entries remembered for each searched row


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


def first_reading(layout: Layout, cores: Cores, mesh: Any) -> tuple[Reading, jax.Array]:
    """The ranges of the searched rows at scale 1, and those of all links in order."""
    best: dict[Link, jax.Array] = {}
    for link in layout.starts:
        last = list(best.values())[-1:]
        best[link] = scaled_maximum(cores[link.leaf], (), link.axes, after=last)
    starts = log2_of([_tops(layout, link, best[link]) for link in layout.starts], mesh)
    rows = [starts[layout.starts[link]] for link in layout.searched]
    ranges = jnp.concatenate([starts[:0], *rows])
    exponents = replicated(jnp.zeros(layout.unscaled + 1, jnp.float32), mesh)
    return Reading(exponents, tuple(best[link] for link in layout.searched), ranges), starts


def read(layout: Layout, cores: Cores, exponents: jax.Array) -> Reading:
    """The ranges of the searched rows at some scales."""
    linear = replicated(jnp.exp2(exponents))
    best = tuple(
        scaled_maximum(cores[link.leaf], _factors(layout, link, linear), link.axes)
        for link in layout.searched
    )
    tops = [_tops(layout, link, one) for link, one in zip(layout.searched, best, strict=True)]
    return Reading(exponents, best, log2_of(tops, mesh_of(exponents)))


def no_entries(layout: Layout, reading: Reading) -> Entries:
    """Room for the entries of the searched rows."""
    mesh, rows = mesh_of(reading.range), reading.range.size
    others = jnp.zeros((SLOTS, layout.depth, rows), jnp.int32)
    value = jnp.full((SLOTS, rows), -jnp.inf, jnp.float32)
    return Entries(replicated(value, mesh), replicated(others, mesh))


def remember(
    entries: Entries, layout: Layout, cores: Cores, reading: Reading, slot: jax.Array
) -> Entries:
    """The entries with those behind a reading in one slot."""
    linear = replicated(jnp.exp2(reading.exponents))
    parts = []
    for link, best in zip(layout.searched, reading.best, strict=True):
        factors = _factors(layout, link, linear)
        along = where_maximum(cores[link.leaf], factors, link.axes, best)
        at = _winners(best, link.ids, layout.size_of(link))
        parts.append(scaling(layout, link, at, along[at]))
    others = jnp.concatenate(parts, axis=1)
    value = reading.range - jnp.sum(reading.exponents[others], axis=0)
    return Entries(
        lax.dynamic_update_index_in_dim(entries.value, value, slot, 0),
        lax.dynamic_update_index_in_dim(entries.others, others, slot, 0),
    )


def _tops(layout: Layout, link: Link, best: jax.Array) -> jax.Array:
    return channel_maximum(best, link.ids, layout.size_of(link))


def _factors(layout: Layout, link: Link, linear: jax.Array) -> Factors:
    others = layout.plan.leaves[link.leaf].others(link)
    return [(other.axes, exponents_along(layout, linear, other)) for other in others]


def _winners(best: jax.Array, ids: np.ndarray, size: int) -> jax.Array:
    """The position at which each channel has its maximum; 0 for a channel without position."""
    if is_identity(ids, size):
        return jnp.arange(size, dtype=jnp.int32)
    top = channel_maximum(best, ids, size)
    wins = best == jnp.append(top, 0.0)[ids.ravel()]
    return channel_maximum(jnp.where(wins, jnp.arange(ids.size, dtype=jnp.int32), 0), ids, size)
