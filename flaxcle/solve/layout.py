"""Where each number of the solver stands: all channels in one vector, all ranges in rows.

Groups that share a leaf get different colours, so that one colour can be updated at once. In the
vector `x` channels are ordered by colour, then by number of terms; the rows of a colour are its
groups' first terms, then the second terms of those that have one, and so on. A balance is thus a
sum of prefixes, and the compiled sweep does not grow with the number of groups.

A range depends on other scales through *exponents*: the vector of `power * x` for each power that
occurs, and a last 0 for 'not scaled'. The invariant: everything here is static.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.solve.plan import Link, Plan, Term

LISTED = 16  # a row with no more candidates is never searched on the weights


class Kind(IntEnum):
    """How the largest entry of a row is known."""

    FIXED = 0  # other scales may move it, but it stays the largest
    LISTED = 1  # all candidates are listed
    SEARCHED = 2  # the weights are searched for it


@dataclass(frozen=True, eq=False)
class Block:
    """The rows of one term: one for each channel of its group."""

    term: Term
    size: int
    kind: Kind

    @property
    def link(self) -> Link:
        """The first link of the term; it has others only when its kind is fixed."""
        return self.term.links[0]


@dataclass(frozen=True, eq=False)
class Colour:
    """Groups that don't share a leaf.

    Attributes:
        start: their first channel in `x`.
        stop: the end of their channels.
        prefixes: for each slot the number of channels that have a term there.
        blocks: the rows in order.
        rows: which of all rows are this colour's.
        searched: which of all searched rows are.
    """

    start: int
    stop: int
    prefixes: tuple[int, ...]
    blocks: tuple[Block, ...]
    rows: slice
    searched: slice

    def of_kind(self, kind: Kind) -> tuple[Block, ...]:
        """The blocks of one kind."""
        return tuple(block for block in self.blocks if block.kind == kind)

    @property
    def powers(self) -> np.ndarray:
        """For each row the exponent of its own scale."""
        return np.concatenate([np.full(b.size, b.term.power, np.float32) for b in self.blocks])

    @property
    def order(self) -> np.ndarray:
        """For each row its position when rows are sorted by kind."""
        kinds = np.concatenate([np.full(block.size, block.kind) for block in self.blocks])
        return np.argsort(np.argsort(kinds, kind="stable"))

    def joined(self, rows: jax.Array, counted: jax.Array) -> jax.Array:
        """The rows, but for each that is joined the largest of its side that is counted."""
        joined = np.concatenate([np.full(b.size, b.term.joined) for b in self.blocks])
        if not joined.any():
            return rows
        size = jnp.where(counted, rows / np.abs(self.powers), -jnp.inf)
        for side in (self.powers > 0, self.powers < 0):
            top = self.to_channels(jnp.where(side, size, -jnp.inf), jnp.maximum)
            largest = self.to_rows(top) * np.abs(self.powers)
            rows = jnp.where(side & joined, largest, rows)
        return rows

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
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of all colours."""
        return tuple(block for colour in self.colours for block in colour.blocks)

    @cached_property
    def searched(self) -> tuple[Link, ...]:
        """The link of each searched block, in the order of the rows."""
        return tuple(block.link for block in self.blocks if block.kind == Kind.SEARCHED)

    @property
    def row_powers(self) -> np.ndarray:
        """For each row the exponent of its own scale."""
        return np.concatenate([colour.powers for colour in self.colours])

    def to_channels(self, rows: jax.Array, combine: Callable[..., jax.Array]) -> jax.Array:
        """Combines the rows of each channel of all colours."""
        return jnp.concatenate([c.to_channels(rows[c.rows], combine) for c in self.colours])

    def to_rows(self, channels: jax.Array) -> jax.Array:
        """Gives each row of all colours the value of its channel."""
        return jnp.concatenate([c.to_rows(channels[c.start : c.stop]) for c in self.colours])

    @cached_property
    def starts(self) -> dict[Link, slice]:
        """Where the channels of each link stand in the vector of ranges at scale 1."""
        out, first = {}, 0
        for link in self.plan.links:
            if link.group in self.offsets:
                last = first + self.size_of(link)
                out[link], first = slice(first, last), last
        return out

    @cached_property
    def depth(self) -> int:
        """The largest number of scales on one entry beside a row's own."""
        return max(len(self.plan.leaves[link.leaf].links) for link in self.starts) - 1

    @property
    def owner(self) -> np.ndarray:
        """For each channel of `x` a number of its group, from 0."""
        sizes = [self.plan.spec.groups[number].size for number in self.offsets]
        return np.repeat(np.arange(len(sizes)), sizes)

    @property
    def unscaled(self) -> int:
        """The number of the exponent that is always 0."""
        return len(self.powers) * self.size

    @property
    def number_dtype(self) -> type[np.integer]:
        """Of the numbers of exponents, which take half of what is remembered."""
        return np.uint16 if self.unscaled < 2**16 else np.int32

    def first_exponent(self, link: Link) -> int:
        """The number of the exponent of a link's first channel."""
        return self.powers.index(link.power) * self.size + self.offsets[link.group]

    def numbers(self, link: Link) -> np.ndarray:
        """For each position along a link's axes the number of the exponent that scales it."""
        first = self.first_exponent(link)
        numbers = np.where(link.ids >= 0, first + link.ids, self.unscaled)
        return numbers.astype(self.number_dtype)

    def exponents(self, x: jax.Array) -> jax.Array:
        """`power * x` for each power, and 0."""
        scaled = [x * jnp.asarray(power, x.dtype) for power in self.powers]
        return jnp.concatenate([*scaled, jnp.zeros(1, x.dtype)])

    def size_of(self, link: Link) -> int:
        """Number of channels of the link's group."""
        return self.plan.spec.groups[link.group].size

    def sources(self, blocks: Sequence[Block]) -> np.ndarray:
        """For each row the ranges at scale 1 of which it is the largest, (links, rows)."""
        most = max((len(block.term.links) for block in blocks), default=1)
        parts = [np.zeros((most, 0), np.int64)]
        for block in blocks:
            own = [self.starts[link] for link in block.term.links]
            own += own[:1] * (most - len(own))
            parts.append(np.stack([np.arange(one.start, one.stop) for one in own]))
        return np.concatenate(parts, axis=1)


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
        if any(kind_of(plan, term) == Kind.SEARCHED for term in terms):
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


def kind_of(plan: Plan, term: Term) -> Kind:
    """How the largest entries of a term are known."""
    candidates = plan.leaves[term.links[0].leaf].candidates(term.links[0])
    if candidates == 1:
        return Kind.FIXED
    return Kind.LISTED if candidates <= LISTED else Kind.SEARCHED


def _layout(plan: Plan, colour_of: Mapping[int, int], groups: Sequence[int]) -> Layout:
    offsets: dict[int, int] = {}
    parts: list[Colour] = []
    start = row = searched = 0
    for colour in sorted({colour_of[number] for number in groups}):
        own = [number for number in groups if colour_of[number] == colour]
        own.sort(key=lambda number: -len(plan.terms[number]))
        parts.append(_colour(plan, own, start, row, searched))
        row, searched = parts[-1].rows.stop, parts[-1].searched.stop
        for number in own:
            offsets[number] = start
            start += plan.spec.groups[number].size
    powers = tuple(sorted({link.power for link in plan.links}))
    return Layout(plan, start, offsets, powers, tuple(parts))


def _colour(plan: Plan, groups: Sequence[int], start: int, row: int, searched: int) -> Colour:
    prefixes: list[int] = []
    blocks: list[Block] = []
    for slot in range(max(len(plan.terms[number]) for number in groups)):
        terms = [(n, plan.terms[n][slot]) for n in groups if len(plan.terms[n]) > slot]
        sizes = [plan.spec.groups[number].size for number, _ in terms]
        prefixes.append(sum(sizes))
        blocks += [
            Block(term, size, kind_of(plan, term))
            for (_, term), size in zip(terms, sizes, strict=True)
        ]
    last = searched + sum(block.size for block in blocks if block.kind == Kind.SEARCHED)
    rows = slice(row, row + sum(prefixes))
    stop = start + prefixes[0]
    return Colour(start, stop, tuple(prefixes), tuple(blocks), rows, slice(searched, last))
