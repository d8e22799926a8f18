"""The search of the weights: how large each channel is now, and which entry makes it so.

Weights are read here and nowhere else in the solver. `read` gives the ranges at some scales,
`remember` reads once more for the entries behind them. The invariant: both see the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcle.ranges import channel_maximum, is_identity, mesh_of, replicated
from flaxcle.solve.entries import Cores, Entries, exponents_along, log2_of, scaling
from flaxcle.solve.layout import Layout
from flaxcle.solve.maxima import Factors, scaled_maximum, where_maximum
from flaxcle.solve.plan import Axes, Link

SLOTS = 4  # entries remembered for each searched row


class Scan(NamedTuple):
    """One reduction of a leaf; links along the same axes, moved by the same others, share it.

    Attributes:
        leaf: its path.
        axes: the axes that stay.
        inner: the links whose scales decide where the maximum stands.
    """

    leaf: str
    axes: Axes
    inner: tuple[Link, ...]


class Reading(NamedTuple):
    """The ranges of the searched rows at some scales.

    Attributes:
        exponents: the scales.
        peaks: for each scan the linear maxima, scaled by its inner links alone.
        range: for each row its log2 range, scaled by all groups but the row's own.
    """

    exponents: jax.Array
    peaks: tuple[jax.Array, ...]
    range: jax.Array


def first_reading(layout: Layout, cores: Cores, mesh: Any) -> tuple[Reading, jax.Array]:
    """The ranges of the searched rows at scale 1, and those of all links in order."""
    best: dict[tuple[str, Axes], jax.Array] = {}
    for link in layout.starts:
        last = list(best.values())[-1:]
        if (link.leaf, link.axes) not in best:
            top = scaled_maximum(cores[link.leaf], (), link.axes, after=last)
            best[link.leaf, link.axes] = top
    tops = [_tops(layout, link, best[link.leaf, link.axes]) for link in layout.starts]
    starts = log2_of(tops, mesh)
    rows = [starts[layout.starts[link]] for link in layout.searched]
    ranges = jnp.concatenate([starts[:0], *rows])
    exponents = replicated(jnp.zeros(layout.unscaled + 1, jnp.float32), mesh)
    peaks = tuple(best[scan.leaf, scan.axes] for scan in _scans(layout))
    return Reading(exponents, peaks, ranges), starts


def read(layout: Layout, cores: Cores, exponents: jax.Array) -> Reading:
    """The ranges of the searched rows at some scales."""
    linear = replicated(jnp.exp2(exponents))
    peaks = tuple(
        scaled_maximum(cores[scan.leaf], _factors(layout, scan.inner, linear), scan.axes)
        for scan in _scans(layout)
    )
    tops = [
        _tops(layout, link, best)
        for link, best in zip(layout.searched, _best(layout, peaks, linear), strict=True)
    ]
    return Reading(exponents, peaks, log2_of(tops, mesh_of(exponents)))


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
    along = {}
    for scan, peak in zip(_scans(layout), reading.peaks, strict=True):
        factors = _factors(layout, scan.inner, linear)
        along[scan] = where_maximum(cores[scan.leaf], factors, scan.axes, peak)
    parts = []
    for link, best in zip(layout.searched, _best(layout, reading.peaks, linear), strict=True):
        at = _winners(best, link.ids, layout.size_of(link))
        parts.append(scaling(layout, link, at, along[_scan(layout, link)][at]))
    others = jnp.concatenate(parts, axis=1)
    value = reading.range - jnp.sum(reading.exponents[others], axis=0)
    return Entries(
        lax.dynamic_update_index_in_dim(entries.value, value, slot, 0),
        lax.dynamic_update_index_in_dim(entries.others, others, slot, 0),
    )


def _scan(layout: Layout, link: Link) -> Scan:
    return Scan(link.leaf, link.axes, layout.plan.leaves[link.leaf].inner(link))


def _scans(layout: Layout) -> tuple[Scan, ...]:
    """The scans behind the searched links, each once."""
    return tuple(dict.fromkeys(_scan(layout, link) for link in layout.searched))


def _best(layout: Layout, peaks: Sequence[jax.Array], linear: jax.Array) -> list[jax.Array]:
    """For each searched link the linear maximum at each of its positions, scaled by all others."""
    peak_of = dict(zip(_scans(layout), peaks, strict=True))
    out = []
    for link in layout.searched:
        leaf, best = layout.plan.leaves[link.leaf], peak_of[_scan(layout, link)]
        extent = tuple(leaf.shape[axis] for axis in link.axes)
        for axes, factor in _factors(layout, leaf.outer(link), linear):
            kept = [leaf.shape[axis] if axis in axes else 1 for axis in link.axes]
            best = (best.reshape(extent) * factor.reshape(kept)).ravel()
        out.append(best)
    return out


def _tops(layout: Layout, link: Link, best: jax.Array) -> jax.Array:
    return channel_maximum(best, link.ids, layout.size_of(link))


def _factors(layout: Layout, links: Sequence[Link], linear: jax.Array) -> Factors:
    return [(link.axes, exponents_along(layout, linear, link)) for link in links]


def _winners(best: jax.Array, ids: np.ndarray, size: int) -> jax.Array:
    """The position at which each channel has its maximum; 0 for a channel without position."""
    if is_identity(ids, size):
        return jnp.arange(size, dtype=jnp.int32)
    top = channel_maximum(best, ids, size)
    wins = best == jnp.append(top, 0.0)[ids.ravel()]
    return channel_maximum(jnp.where(wins, jnp.arange(ids.size, dtype=jnp.int32), 0), ids, size)
