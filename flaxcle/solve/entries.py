"""Entries: weights that may be the largest of their channel, and the scales that move them.

An entry keeps its log2 magnitude at scale 1, `value`, and the numbers of the exponents that scale
it beside the scale of its own row, so

    range = max over a row's entries of value + sum exponents[others]

A row is *fixed* (one entry), *listed* (all its entries are here) or *searched* (here are those
that attained its maximum so far). The invariant: an entry is a lower bound of its range for ever.
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

from flaxcle.ranges import is_identity, replicated, taken
from flaxcle.solve.layout import Block, Colour, Kind, Layout
from flaxcle.solve.plan import Leaf, Link

Cores = dict[str, jax.Array]


class Entries(NamedTuple):
    """The entries of some rows: `value` (slots, rows), `others` (slots, depth, rows)."""

    value: jax.Array
    others: jax.Array

    def rows(self, which: slice) -> Entries:
        """The entries of some of the rows."""
        return Entries(self.value[:, which], self.others[:, :, which])

    def ranges(self, exponents: jax.Array) -> jax.Array:
        """The log2 range of each row, scaled by all groups but the row's own.

        One slot after the other: XLA on the CPU fuses these gathers, and would take ten times as
        long for one gather and its reduction.
        """
        slots = zip(self.value, self.others, strict=True)
        scaled = (sum((taken(exponents, at) for at in o), v) for v, o in slots)
        return reduce(jnp.maximum, scaled)


def known_entries(
    layout: Layout, colour: Colour, starts: jax.Array, magnitudes: jax.Array
) -> list[Entries]:
    """The entries of the fixed rows of a colour, and of its listed rows.

    Args:
        layout: the order of rows and channels.
        colour: whose rows.
        starts: the log2 range at scale 1 of each channel of each link.
        magnitudes: see `listed_magnitudes`.
    """
    fixed, listed = colour.of_kind(Kind.FIXED), colour.of_kind(Kind.LISTED)
    found = []
    if fixed:
        value = jnp.max(starts[layout.sources(fixed)], axis=0, keepdims=True)
        others = [_others_of(layout, block, _positions(layout, block, 1)) for block in fixed]
        found.append(Entries(value, jnp.asarray(np.concatenate(others, axis=2))))
    if listed:
        slots = max(layout.plan.leaves[b.link.leaf].candidates(b.link) for b in listed)
        places = [_positions(layout, block, slots) for block in listed]
        others = [_others_of(layout, b, place) for b, place in zip(listed, places, strict=True)]
        first = _first_magnitudes(layout)
        where = [
            np.where(place >= 0, first[block.link.leaf] + place, magnitudes.size - 1)
            for block, place in zip(listed, places, strict=True)
        ]
        value = magnitudes[np.concatenate(where, axis=1)]
        found.append(Entries(value, jnp.asarray(np.concatenate(others, axis=2))))
    return found


def listed_magnitudes(layout: Layout, cores: Cores, mesh: Any) -> jax.Array:
    """The log2 magnitudes of all weights of listed rows, and a last -inf for 'no weight'."""
    whole = [replicated(cores[path]).ravel() for path in _first_magnitudes(layout)]
    return log2_of([*whole, jnp.zeros(1, jnp.float32)], mesh)


def log2_of(parts: Sequence[jax.Array], mesh: Any) -> jax.Array:
    """The logarithms of all magnitudes, computed as one vector: XLA would compile each alone."""
    joined = jnp.concatenate([jnp.zeros(0, jnp.float32), *(p.astype(jnp.float32) for p in parts)])
    return jnp.log2(jnp.abs(lax.optimization_barrier(replicated(joined, mesh))))


def exponents_along(layout: Layout, exponents: jax.Array, link: Link) -> jax.Array:
    """The exponent that scales each position along a link's axes, flat."""
    if is_identity(link.ids, link.ids.size):
        first = layout.first_exponent(link)
        return replicated(lax.slice(exponents, (first,), (first + link.ids.size,)))
    return replicated(exponents[layout.numbers(link).ravel()])


def _positions(layout: Layout, block: Block, slots: int) -> np.ndarray:
    """For each channel the flat positions in the core that hold it, -1 for none, (slots, rows)."""
    link, leaf = block.link, layout.plan.leaves[block.link.leaf]
    channel = _on_core(link, link.ids, leaf).ravel()
    order = np.argsort(channel, kind="stable")
    order = order[channel[order] >= 0]
    owner = channel[order]
    slot = np.arange(owner.size) - np.searchsorted(owner, owner)
    listed = slot < slots  # a row that no other scale moves needs one position, whichever
    out = np.full((slots, block.size), -1)
    out[slot[listed], owner[listed]] = order[listed]
    return out


def _others_of(layout: Layout, block: Block, place: np.ndarray) -> np.ndarray:
    """The exponents that scale entries at flat positions of the core, (slots, depth, rows)."""
    link, leaf = block.link, layout.plan.leaves[block.link.leaf]
    out = np.full((len(place), layout.depth, block.size), layout.unscaled, layout.number_dtype)
    for number, other in enumerate(leaf.others(link)):
        out[:, number] = _on_core(other, layout.numbers(other), leaf).ravel()[place]
    return out


def _on_core(link: Link, values: np.ndarray, leaf: Leaf) -> np.ndarray:
    """Values along a link's axes, broadcast to the core."""
    kept = [size if axis in link.axes else 1 for axis, size in enumerate(leaf.shape)]
    return np.broadcast_to(values.reshape(kept), leaf.shape)


def _first_magnitudes(layout: Layout) -> dict[str, int]:
    """Where the weights of each leaf with listed rows start in `listed_magnitudes`."""
    blocks = (block for colour in layout.colours for block in colour.of_kind(Kind.LISTED))
    paths = dict.fromkeys(block.link.leaf for block in blocks)
    sizes = [math.prod(layout.plan.leaves[path].shape) for path in paths]
    return dict(zip(paths, np.cumsum([0, *sizes]).tolist(), strict=False))
