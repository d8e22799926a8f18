"""Where each number of the solver stands: all channels in one vector, all ranges in rows.

Groups that share a leaf get different colours, so that one colour can be updated at once. In the
vector `x` channels are ordered by colour, then by number of terms; the rows of a colour are its
groups' first terms, then the second terms of those that have one, and so on. A balance is thus a
sum of prefixes, and the compiled sweep does not grow with the number of groups.

A range depends on other scales through *exponents*: the vector of `power * x` for each power that
occurs, and a last 0 for 'not scaled'. The invariant: everything here is static.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcle.ranges import is_identity
from flaxcle.solve.plan import Leaf, Link, Plan, Term


@dataclass(frozen=True, eq=False)
class Block:
    """The rows of one term: one for each channel of its group."""

    term: Term
    size: int
    searched: bool


@dataclass(frozen=True, eq=False)
class Colour:
    """Groups that don't share a leaf.

    Attributes:
        start: their first channel in `x`.
        stop: the end of their channels.
        prefixes: for each slot the number of channels that have a term there.
        blocks: the rows in order.
        searched: which of all searched rows are this colour's.
    """

    start: int
    stop: int
    prefixes: tuple[int, ...]
    blocks: tuple[Block, ...]
    searched: slice

    @property
    def powers(self) -> np.ndarray:
        """For each row the exponent of its own scale."""
        return np.concatenate([np.full(b.size, b.term.power, np.float32) for b in self.blocks])

    @property
    def fixed(self) -> np.ndarray:
        """The rows whose maximum stands still."""
        return np.flatnonzero(~self._is_searched)

    @property
    def order(self) -> np.ndarray:
        """For each row its position among first the fixed, then the searched rows."""
        return np.argsort(np.argsort(self._is_searched, kind="stable"))

    @property
    def _is_searched(self) -> np.ndarray:
        return np.concatenate([np.full(block.size, block.searched) for block in self.blocks])

    def to_channels(self, rows: jax.Array, combine: Callable[..., jax.Array]) -> jax.Array:
        """Combines the rows of each channel."""
        first, *rest = np.cumsum(self.prefixes)
        total = rows[:first]
        for count, stop in zip(self.prefixes[1:], rest, strict=True):
            joined = combine(total[:count], rows[stop - count : stop])
            total = jnp.concatenate([joined, total[count:]])
        return total

    def to_rows(self, channels: jax.Array) -> jax.Array:
        """Gives each row the value of its channel."""
        return jnp.concatenate([channels[:count] for count in self.prefixes])


@dataclass(frozen=True, eq=False)
class Layout:
    """The order of channels and rows, of all groups or of a part that nothing else touches.

    Attributes:
        plan: what moves.
        size: number of channels.
        offsets: group number -> its first channel in `x`.
        powers: the powers of the exponents.
        colours: the groups in the order of their update.
    """

    plan: Plan
    size: int
    offsets: dict[int, int]
    powers: tuple[float, ...]
    colours: tuple[Colour, ...]

    @property
    def searched(self) -> tuple[Link, ...]:
        """The link of each searched block, in the order of the rows."""
        blocks = (block for colour in self.colours for block in colour.blocks)
        return tuple(block.term.links[0] for block in blocks if block.searched)

    @property
    def still(self) -> tuple[Link, ...]:
        """All other links of these groups."""
        done = set(self.searched)
        return tuple(x for x in self.plan.links if x.group in self.offsets and x not in done)

    @property
    def starts(self) -> dict[Link, slice]:
        """Where the channels of each link stand in the vector of ranges at scale 1."""
        out, first = {}, 0
        for link in (*self.searched, *self.still):
            last = first + self.size_of(link)
            out[link], first = slice(first, last), last
        return out

    def size_of(self, link: Link) -> int:
        """Number of channels of the link's group."""
        return self.plan.spec.groups[link.group].size

    def sources(self, colour: Colour) -> np.ndarray:
        """For each row the ranges at scale 1 of which it is the largest, (links, rows)."""
        starts = self.starts
        most = max(len(block.term.links) for block in colour.blocks)
        return np.concatenate(
            [_source(block.term, starts, most) for block in colour.blocks], axis=1
        )

    @property
    def depth(self) -> int:
        """The largest number of scales on one entry beside a row's own."""
        leaves = {link.leaf for link in (*self.searched, *self.still)}
        return max(len(self.plan.leaves[path].links) for path in leaves) - 1

    @property
    def owner(self) -> np.ndarray:
        """For each channel of `x` a number of its group, from 0."""
        sizes = [self.plan.spec.groups[number].size for number in self.offsets]
        return np.repeat(np.arange(len(sizes)), sizes)

    def exponents(self, x: jax.Array) -> jax.Array:
        """`power * x` for each power, and 0."""
        scaled = [x * jnp.asarray(power, x.dtype) for power in self.powers]
        return jnp.concatenate([*scaled, jnp.zeros(1, x.dtype)])

    @property
    def unscaled(self) -> int:
        """The number of the exponent that is always 0."""
        return len(self.powers) * self.size

    def along(self, exponents: jax.Array, link: Link) -> jax.Array:
        """The exponent that scales each position along a link's axes."""
        if is_identity(link.ids, link.ids.size):
            first = self._first(link)
            return lax.slice(exponents, (first,), (first + link.ids.size,))
        return exponents[self.numbers(link, np.arange(link.ids.size))]

    def numbers(self, link: Link, flat: Any) -> Any:
        """The numbers of the exponents that scale some positions along a link's axes."""
        if is_identity(link.ids, link.ids.size):
            return self._first(link) + flat
        table = np.where(link.ids >= 0, self._first(link) + link.ids, self.unscaled).ravel()
        return (table if isinstance(flat, np.ndarray) else jnp.asarray(table, jnp.int32))[flat]

    def _first(self, link: Link) -> int:
        return self.powers.index(link.power) * self.size + self.offsets[link.group]

    def coupling(self, colour: Colour) -> np.ndarray:
        """The exponents that scale the fixed rows of a colour, (depth, rows)."""
        parts = [np.zeros((self.depth, 0), np.int32)]
        for block in colour.blocks:
            if not block.searched:
                link = block.term.links[0]
                at = np.zeros(block.size, np.int64)
                at[link.ids[link.ids >= 0]] = np.flatnonzero(link.ids >= 0)
                parts.append(self.others(link, at, np.zeros_like(at)))
        return np.concatenate(parts, axis=1)

    def others(self, link: Link, at: Any, along: Any) -> Any:
        """The exponents that scale entries of a leaf beside the link's own, (depth, entries).

        Args:
            link: whose rows the entries belong to.
            at: flat positions along the link's axes, NumPy or JAX.
            along: flat positions along the other axes of the core.
        """
        xp = np if isinstance(at, np.ndarray) else jnp
        leaf = self.plan.leaves[link.leaf]
        rest = tuple(axis for axis in range(len(leaf.shape)) if axis not in link.axes)
        place = _unravel(at, link.axes, leaf) | _unravel(along, rest, leaf)
        found = [self.numbers(x, _ravel(place, x.axes, leaf)) for x in leaf.others(link)]
        unscaled = xp.full((self.depth - len(found), *at.shape), self.unscaled)
        return xp.concatenate([xp.stack(found), unscaled] if found else [unscaled]).astype(np.int32)


@lru_cache(maxsize=256)
def make_layouts(plan: Plan) -> tuple[Layout, ...]:
    """The layout of the groups that need no search of the weights, and of those that do.

    Most networks have many small components of the first kind (expand, depthwise, project). They
    are balanced in a few sweeps, so they must not take part in all those that the others need.
    """
    touching = neighbours(plan)
    colour_of = colours(touching)
    active: set[int] = set()
    for number, terms in plan.terms.items():
        if any(is_searched(plan, term) for term in terms):
            active |= reach(number, touching)
    parts = ([n for n in touching if n not in active], [n for n in touching if n in active])
    return tuple(_layout(plan, colour_of, part) for part in parts if part)


def neighbours(plan: Plan) -> dict[int, set[int]]:
    """For each moving group those that move a range of its balance, or the other way round."""
    touching: dict[int, set[int]] = {number: set() for number in plan.terms}
    for number, terms in plan.terms.items():
        for link in (link for term in terms for link in term.links):
            for other in plan.leaves[link.leaf].links:
                touching[number].add(other.group)
                touching[other.group].add(number)
    return touching


def colours(touching: Mapping[int, set[int]]) -> dict[int, int]:
    """A colour for each group: the first that none of its neighbours has."""
    colour: dict[int, int] = {}
    for number, near in touching.items():
        taken = {colour[other] for other in near if other in colour}
        colour[number] = next(c for c in range(len(taken) + 1) if c not in taken)
    return colour


def reach(number: int, touching: Mapping[int, set[int]]) -> set[int]:
    """The groups that are coupled to a group, directly or not."""
    found, todo = {number}, [number]
    while todo:
        new = touching[todo.pop()] - found
        found |= new
        todo += new
    return found


def is_searched(plan: Plan, term: Term) -> bool:
    """Whether other scales decide where the maximum of a term stands."""
    return plan.leaves[term.links[0].leaf].searched(term.links[0])


def _layout(plan: Plan, colour_of: Mapping[int, int], groups: Sequence[int]) -> Layout:
    offsets: dict[int, int] = {}
    parts: list[Colour] = []
    start = searched = 0
    for colour in sorted({colour_of[number] for number in groups}):
        own = [number for number in groups if colour_of[number] == colour]
        own.sort(key=lambda number: -len(plan.terms[number]))
        parts.append(_colour(plan, own, start, searched))
        searched = parts[-1].searched.stop
        for number in own:
            offsets[number] = start
            start += plan.spec.groups[number].size
    powers = tuple(sorted({link.power for link in plan.links}))
    return Layout(plan, start, offsets, powers, tuple(parts))


def _colour(plan: Plan, groups: Sequence[int], start: int, first: int) -> Colour:
    prefixes: list[int] = []
    blocks: list[Block] = []
    for slot in range(max(len(plan.terms[number]) for number in groups)):
        terms = [(n, plan.terms[n][slot]) for n in groups if len(plan.terms[n]) > slot]
        sizes = [plan.spec.groups[number].size for number, _ in terms]
        prefixes.append(sum(sizes))
        blocks += [
            Block(term, size, is_searched(plan, term))
            for (_, term), size in zip(terms, sizes, strict=True)
        ]
    last = first + sum(block.size for block in blocks if block.searched)
    stop = start + prefixes[0]
    return Colour(start, stop, tuple(prefixes), tuple(blocks), slice(first, last))


def _source(term: Term, starts: dict[Link, slice], most: int) -> np.ndarray:
    own = [np.arange(starts[link].start, starts[link].stop) for link in term.links]
    return np.stack(own + own[:1] * (most - len(own)))


def _unravel(flat: Any, axes: Sequence[int], leaf: Leaf) -> dict[int, Any]:
    place = {}
    for axis in reversed(axes):
        place[axis] = flat % leaf.shape[axis]
        flat = flat // leaf.shape[axis]
    return place


def _ravel(place: dict[int, Any], axes: Sequence[int], leaf: Leaf) -> Any:
    strides = [math.prod(leaf.shape[b] for b in axes[i + 1 :]) for i in range(len(axes))]
    return sum(place[axis] * stride for axis, stride in zip(axes, strides, strict=True))
