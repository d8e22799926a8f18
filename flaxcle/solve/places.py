"""From the place of a maximum to the scales on it, for all searched rows at once.

A searched row is a channel of a link; it stands at one or more *positions*, those of the link's
axes. The entry behind its maximum is given by such a position and by one along the other axes of
the core. XLA would compile the index arithmetic anew for each link, so all rows share it:

    number = table[base[position] + sum over runs of (along // divide % size) * stride]

The invariant: everything but the two positions of each row is static.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.ranges import channel_maximum, is_identity, taken
from flaxcle.solve.layout import Layout
from flaxcle.solve.plan import Leaf, Link

NO_END = np.iinfo(np.int32).max


class Run(NamedTuple):
    """Axes of a core that follow on each other, where a flat position steps through all of them.

    `along // divide % size` is the position along them, `stride` how far a step moves the number.
    `size` is `NO_END` where nothing lies before them, so that there is nothing to be taken off.
    """

    divide: int
    size: int
    stride: int


@dataclass(frozen=True, eq=False)
class Places:
    """The static part.

    Attributes:
        rows: for each position the row that stands there, -1 for none.
        count: number of rows.
        table: numbers of exponents.
        base: where a position's numbers start in the table, for each scale on its entries.
        runs: divisors, sizes and strides of the runs for each scale, (3, scales, runs, rows).
    """

    rows: np.ndarray
    count: int
    table: np.ndarray
    base: np.ndarray
    runs: np.ndarray

    def winners(self, best: jax.Array) -> jax.Array | None:
        """The position at which each row has its maximum; None when each has but one.

        Rows without a position have the first.
        """
        if is_identity(self.rows, self.count):
            return None
        top = jnp.append(channel_maximum(best, self.rows, self.count), 0.0)
        positions = jnp.arange(self.rows.size, dtype=jnp.int32)
        wins = jnp.where(best == top[self.rows], positions, 0)
        return channel_maximum(wins, self.rows, self.count)

    def numbers(self, at: jax.Array | None, along: jax.Array) -> jax.Array:
        """The exponents that scale the entries beside the rows' own, (scales, rows).

        Args:
            at: see `winners`.
            along: at each position the position along the other axes.
        """
        number, along = jnp.asarray(self.base), along[None]
        if at is not None:
            number, along = number[:, at], along[:, at]
        for divide, size, stride in self.runs.transpose(2, 0, 1, 3):
            part = along if (divide == 1).all() else along // divide
            part = part if (size == NO_END).all() else part % size
            number = number + part * stride
        return taken(jnp.asarray(self.table), number)


@lru_cache(maxsize=256)
def places_of(layout: Layout) -> Places:
    """The places of a layout's searched rows."""
    links = layout.searched
    rows, count = joined_ids(layout, links)
    others = [layout.plan.leaves[link.leaf].others(link) for link in links]
    scales = tuple(dict.fromkeys(other for own in others for other in own))
    tables = [layout.numbers(other).ravel() for other in scales]
    first = dict(zip(scales, np.cumsum([0, *map(len, tables)]).tolist(), strict=False))
    table = np.concatenate([*tables, [layout.unscaled]]).astype(layout.number_dtype)
    base = np.full((layout.depth, rows.size), table.size - 1, np.int32)
    stops = np.cumsum([link.ids.size for link in links])
    found = {}
    for number, (link, own) in enumerate(zip(links, others, strict=True)):
        leaf = layout.plan.leaves[link.leaf]
        here = slice(stops[number] - link.ids.size, stops[number])
        for depth, other in enumerate(own):
            base[depth, here] = first[other] + _offsets(leaf, link, other)
            found[number, depth] = _runs(leaf, link, other)
    sizes = [layout.size_of(link) for link in links]
    return Places(rows, count, table, base, _stacked(found, layout.depth, sizes))


def joined_ids(layout: Layout, links: Sequence[Link]) -> tuple[np.ndarray, int]:
    """For each position of the links, one after the other, its row, and the number of rows."""
    parts, count = [np.zeros(0, np.int64)], 0
    for link in links:
        ids = link.ids.ravel()
        parts.append(np.where(ids >= 0, ids + count, -1))
        count += layout.size_of(link)
    return np.concatenate(parts), count


def _strides(leaf: Leaf, axes: Sequence[int]) -> dict[int, int]:
    """How far a step along each of the axes moves a flat position along all of them."""
    sizes = [leaf.shape[axis] for axis in axes]
    return {axis: math.prod(sizes[number + 1 :]) for number, axis in enumerate(axes)}


def _offsets(leaf: Leaf, link: Link, other: Link) -> np.ndarray:
    """What the position along a link's axes adds to that along another's."""
    strides = _strides(leaf, other.axes)
    place = np.indices([leaf.shape[axis] for axis in link.axes], np.int32)
    steps = np.array([strides.get(axis, 0) for axis in link.axes])
    return np.tensordot(steps, place, 1).ravel()


def _runs(leaf: Leaf, link: Link, other: Link) -> list[Run]:
    """How a position along the axes that a link does not read moves that along another's."""
    strides, divide = _strides(leaf, other.axes), 1
    runs: list[Run] = []
    for axis in reversed(leaf.rest(link)):
        size = leaf.shape[axis]
        if axis in strides:
            last = runs[-1] if runs else Run(0, 0, 0)
            if (last.divide * last.size, last.stride * last.size) == (divide, strides[axis]):
                runs[-1] = last._replace(size=last.size * size)
            else:
                runs.append(Run(divide, size, strides[axis]))
        divide *= size
    return [r._replace(size=NO_END) if r.divide * r.size == divide else r for r in runs]


def _stacked(
    found: dict[tuple[int, int], list[Run]], depth: int, sizes: Sequence[int]
) -> np.ndarray:
    """The runs of each row, for each scale; those that are missing don't move the number."""
    most = max((len(runs) for runs in found.values()), default=0)
    out = np.empty((3, depth, most, sum(sizes)), np.int32)
    out[:] = np.array(Run(1, NO_END, 0), np.int32)[:, None, None, None]
    stops = np.cumsum(sizes)
    for (number, scale), runs in found.items():
        here = slice(stops[number] - sizes[number], stops[number])
        for k, run in enumerate(runs):
            out[:, scale, k, here] = np.array(run, np.int32)[:, None]
    return out
