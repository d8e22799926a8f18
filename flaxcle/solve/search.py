"""The search of the weights: how large each channel is now, and which entry makes it so.

Weights are read here and nowhere else in the solver. `read` gives the ranges at some scales,
`remember` reads once more for the entries behind them. The invariant: both see the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcle.ranges import channel_maximum, filled_after, mesh_of, replicated, taken
from flaxcle.solve.entries import Cores, Entries, exponents_along, log2_of
from flaxcle.solve.layout import Layout
from flaxcle.solve.maxima import Factors, Peaks, Rows, joined, peaks_of, positions_of
from flaxcle.solve.places import joined_ids, places_of
from flaxcle.solve.plan import Axes, Link

SLOTS = 3  # entries remembered for each searched row


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
        peaks: for each scan the linear peaks, scaled by its inner links alone.
        range: for each row its log2 range, scaled by all groups but the row's own.
    """

    peaks: tuple[Peaks, ...]
    range: jax.Array


def first_reading(layout: Layout, cores: Cores, mesh: Any) -> tuple[Reading, jax.Array]:
    """The ranges of the searched rows at scale 1, and those of all links in order."""
    axes: dict[str, list[Axes]] = {}
    for link in layout.starts:
        axes.setdefault(link.leaf, []).append(link.axes)
    found: dict[tuple[str, Axes], Peaks] = {}
    for leaf, own in axes.items():
        own, before = list(dict.fromkeys(own)), list(found.values())[-1:]
        peaks = peaks_of(cores[leaf], [Rows(one) for one in own], after=before)
        found |= {(leaf, one): peak for one, peak in zip(own, peaks, strict=True)}
    best = [found[link.leaf, link.axes].value for link in layout.starts]
    starts = _ranges(layout, tuple(layout.starts), best, mesh)
    rows = [np.arange(starts.size)[layout.starts[link]] for link in layout.searched]
    ranges = starts[np.concatenate([np.zeros(0, int), *rows])]
    peaks = tuple(found[scan.leaf, scan.axes] for scan in _scans(layout))
    return Reading(peaks, ranges), starts


def read(layout: Layout, cores: Cores, exponents: jax.Array) -> Reading:
    """The ranges of the searched rows at some scales."""
    linear = replicated(jnp.exp2(exponents))
    peaks: list[Peaks] = []
    for leaf, scans in groupby(_scans(layout), lambda scan: scan.leaf):
        peaks += peaks_of(cores[leaf], [_rows(layout, scan, linear) for scan in scans])
    best = _best(layout, peaks, linear)
    ranges = _ranges(layout, layout.searched, best, mesh_of(exponents))
    return Reading(tuple(peaks), ranges)


def no_entries(layout: Layout, after: jax.Array) -> Entries:
    """Room for the entries of the searched rows, made after some number."""
    shape = (SLOTS, layout.depth, places_of(layout).count)
    value = filled_after(after, (shape[0], shape[2]), -jnp.inf, jnp.float32)
    return Entries(value, filled_after(after, shape, 0, layout.number_dtype))


def remember(
    entries: Entries,
    layout: Layout,
    cores: Cores,
    exponents: jax.Array,
    reading: Reading,
    slot: jax.Array,
) -> Entries:
    """The entries with those behind a reading at some scales in one slot."""
    linear = replicated(jnp.exp2(exponents))
    along = {
        scan: positions_of(cores[scan.leaf], _rows(layout, scan, linear), peaks)
        for scan, peaks in zip(_scans(layout), reading.peaks, strict=True)
    }
    best = replicated(jnp.concatenate(_best(layout, reading.peaks, linear)))
    inner = joined([along[_scan(layout, link)] for link in layout.searched], best)
    places = places_of(layout)
    others = places.numbers(places.winners(best), inner)
    value = reading.range - jnp.sum(taken(exponents, others), axis=0)
    return Entries(
        lax.dynamic_update_index_in_dim(entries.value, value, slot, 0),
        lax.dynamic_update_index_in_dim(entries.others, others, slot, 0),
    )


def _scan(layout: Layout, link: Link) -> Scan:
    return Scan(link.leaf, link.axes, layout.plan.leaves[link.leaf].inner(link))


def _scans(layout: Layout) -> tuple[Scan, ...]:
    """The scans behind the searched links, each once, those of a leaf together."""
    scans = dict.fromkeys(_scan(layout, link) for link in layout.searched)
    leaves = list(dict.fromkeys(scan.leaf for scan in scans))
    return tuple(sorted(scans, key=lambda scan: leaves.index(scan.leaf)))


def _rows(layout: Layout, scan: Scan, linear: jax.Array) -> Rows:
    return Rows(scan.axes, _factors(layout, scan.inner, linear))


def _best(layout: Layout, peaks: Sequence[Peaks], linear: jax.Array) -> list[jax.Array]:
    """For each searched link the linear maximum at each of its positions, scaled by all others."""
    peak_of = dict(zip(_scans(layout), peaks, strict=True))
    out = []
    for link in layout.searched:
        leaf, best = layout.plan.leaves[link.leaf], peak_of[_scan(layout, link)].value
        extent = tuple(leaf.shape[axis] for axis in link.axes)
        for axes, factor in _factors(layout, leaf.outer(link), linear):
            kept = [leaf.shape[axis] if axis in axes else 1 for axis in link.axes]
            best = (best.reshape(extent) * factor.reshape(kept)).ravel()
        out.append(best)
    return out


def _ranges(
    layout: Layout, links: Sequence[Link], best: Sequence[jax.Array], mesh: Any
) -> jax.Array:
    """The log2 range of each channel of the links from the maxima at their positions."""
    tops = jnp.abs(replicated(jnp.concatenate([jnp.zeros(0, jnp.float32), *best]), mesh))
    return log2_of([channel_maximum(tops, *joined_ids(layout, links))], mesh)


def _factors(layout: Layout, links: Sequence[Link], linear: jax.Array) -> Factors:
    return [(link.axes, exponents_along(layout, linear, link)) for link in links]
