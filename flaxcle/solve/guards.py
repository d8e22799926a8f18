"""How much each range counts, and how far each scale may go.

A numerically zero range says nothing about the size of its channel, so it is dropped from the
balance, and a channel with no range left on one side keeps scale 1. "Numerically zero" must not
depend on the scale that a channel happens to have: the product of a producer's and a consumer's
range does not, so it is compared with the largest such product in the group.

The invariant: with bounds in force no leaf leaves the finite numbers of its own dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.ranges import mesh_of, replicated
from flaxcle.solve.layout import Layout
from flaxcle.solve.options import Numbers

MARGIN = 2.0**-6  # log2 distance to the largest finite number, for the rounding of the factors


class Balance(NamedTuple):
    """What a sweep needs beside the ranges.

    Attributes:
        coefficients: the coefficient of each row; 0 where the row does not count.
        low: smallest log2 scale of each channel.
        high: largest log2 scale of each channel; both are 0 where a guard keeps scale 1.
        kept: whether a guard keeps scale 1.
    """

    coefficients: jax.Array
    low: jax.Array
    high: jax.Array
    kept: jax.Array


def balance_of(layout: Layout, starts: jax.Array, largest: np.ndarray, options: Numbers) -> Balance:
    """Coefficients and bounds from the log2 ranges at scale 1.

    Args:
        layout: the order of rows and channels.
        starts: the range of each channel of each link.
        largest: for each of them the log2 of the largest number that its leaf can hold.
        options: `alpha`, `limit` and `floor` are read.
    """
    rows = jnp.max(starts[layout.sources(layout.blocks)], axis=0)
    weights, both = _weights(layout, rows, options)
    coefficients = _coefficients(layout, weights)
    bounds = jnp.where(both, _bounds(layout, starts, largest, options.limit), 0.0)
    return Balance(coefficients, -bounds[0], bounds[1], ~both)


def _weights(layout: Layout, rows: jax.Array, options: Numbers) -> tuple[jax.Array, jax.Array]:
    """Each row's share of its side's weight, and which channels have a range on both sides."""
    powers = layout.row_powers
    produces = powers > 0
    finite = jnp.isfinite(rows)
    size = jnp.where(finite, rows / np.abs(powers), -jnp.inf)
    out = layout.to_channels(jnp.where(produces, size, -jnp.inf), jnp.maximum)
    into = layout.to_channels(jnp.where(produces, -jnp.inf, size), jnp.maximum)
    floor = _group_maximum(layout, out + into) + options.floor
    opposite = jnp.where(produces, layout.to_rows(into), layout.to_rows(out))
    alive = finite & (size + opposite > layout.to_rows(floor))
    made = layout.to_channels((alive & produces).astype(jnp.float32), jnp.add)
    read = layout.to_channels((alive & ~produces).astype(jnp.float32), jnp.add)
    both = (made > 0) & (read > 0)
    members = jnp.where(produces, layout.to_rows(made), layout.to_rows(read))
    share = jnp.where(produces, options.alpha, 1 - options.alpha) / jnp.maximum(members, 1.0)
    return jnp.where(alive & layout.to_rows(both), share, 0.0), both


def _coefficients(layout: Layout, weights: jax.Array) -> jax.Array:
    """The least-squares balance: log2 scale = - sum(w p range) / sum(w p^2)."""
    norm = layout.to_channels(weights * layout.row_powers**2, jnp.add)
    norm = jnp.where(norm > 0, norm, 1.0)
    return -weights * layout.row_powers / layout.to_rows(norm)


def _group_maximum(layout: Layout, values: jax.Array) -> jax.Array:
    """For each channel the largest value in its group."""
    owner = layout.owner
    start = replicated(jnp.full(owner[-1] + 1, -jnp.inf, jnp.float32), mesh_of(values))
    top = start.at[owner].max(values)
    return top[owner]


def _bounds(layout: Layout, starts: jax.Array, largest: np.ndarray, limit: jax.Array) -> jax.Array:
    """How far each channel may go down and up, (2, channels).

    Every leaf must stay finite: its headroom is split evenly over the scales that move it.
    """
    links = layout.starts
    sizes = [layout.size_of(link) for link in links]
    channel = np.concatenate(
        [layout.offsets[link.group] + np.arange(layout.size_of(link)) for link in links]
    )
    upward = np.repeat([int(link.power > 0) for link in links], sizes)
    sharing = [len(layout.plan.leaves[link.leaf].links) * abs(link.power) for link in links]
    room = (largest - MARGIN - starts) / np.repeat(sharing, sizes).astype(np.float32)
    room = jnp.where(room > 0, room, 0.0)
    bounds = replicated(jnp.full((2, layout.size), limit, jnp.float32), mesh_of(starts))
    return bounds.at[upward, channel].min(room)
