"""The interval quotient: symbols that no equation tells apart become one unknown, an atom.

An atom is a range of symbols. Every row of every equation maps whole atoms to whole atoms, one
symbol of each at a time, so that an equation between ranges is one equation between unknowns. The
invariant: a symbol that a row uses for a whole range of others (step 0) is an atom by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from flaxcle.rules.context import Equation
from flaxcle.rules.scale import Power

Array = np.ndarray


class Row(NamedTuple):
    """One equation between atoms: sum of powers times atoms is zero; `why` made it."""

    atoms: tuple[int, ...]
    powers: tuple[Power, ...]
    why: int


@dataclass(frozen=True)
class Atoms:
    """Ranges of symbols, in order and without gaps."""

    starts: Array
    sizes: Array

    def at(self, symbols: Array | int) -> Array:
        """The atoms of these symbols."""
        return np.searchsorted(self.starts, symbols, side="right") - 1

    def within(self, start: int, size: int) -> range:
        """The atoms of a range of symbols that begins and ends with one."""
        if not size:
            return range(0)
        return range(int(self.at(start)), int(self.at(start + size - 1)) + 1)


def quotient(
    symbols: int, borders: Sequence[int], equations: Sequence[Equation]
) -> tuple[Atoms, list[Row]]:
    """The coarsest atoms with these borders, and the equations between them in program order."""
    batches = [_Batch.of(group) for group in _batches(equations)]
    cuts = [np.array([0, *borders], np.int64)]
    for batch in batches:
        cuts += [batch.starts.ravel(), (batch.starts + batch.reach).ravel()]
    points = np.unique(np.concatenate(cuts))
    points = _closed(points[points < symbols], batches)
    atoms = Atoms(points, np.diff(np.append(points, symbols)))
    rows = [row for batch in batches for row in batch.rows(atoms)]
    rows.sort(key=lambda row: row.why)
    return atoms, rows


def _batches(equations: Sequence[Equation]) -> Iterator[list[Equation]]:
    """Equations of one pattern, so that arrays hold many rows."""

    def pattern(equation: Equation) -> tuple[object, ...]:
        return equation.steps, equation.powers

    ordered = sorted(equations, key=lambda e: (e.steps, str(e.powers)))
    return (list(group) for _, group in groupby(ordered, key=pattern))


@dataclass(frozen=True)
class _Batch:
    """Rows of one pattern of steps and powers."""

    powers: tuple[Power, ...]
    steps: tuple[int, ...]
    starts: Array
    lengths: Array
    whys: Array

    @classmethod
    def of(cls, group: list[Equation]) -> _Batch:
        counts = [len(equation.starts) for equation in group]
        return cls(
            group[0].powers,
            group[0].steps,
            np.concatenate([equation.starts for equation in group]),
            np.repeat([equation.length for equation in group], counts),
            np.repeat([equation.why for equation in group], counts),
        )

    @property
    def reach(self) -> Array:
        """How many symbols each term of each row takes."""
        return np.where(np.array(self.steps) == 1, self.lengths[:, None], 1)

    @property
    def moving(self) -> list[int]:
        """The terms that advance along the row."""
        return [k for k, step in enumerate(self.steps) if step]

    def links(self) -> Iterator[tuple[Array, Array, Array]]:
        """Ranges that must be cut at the same places: starts, starts, lengths."""
        long = self.lengths > 1
        first, *others = self.moving or [0]
        for other in others:
            yield self.starts[long, first], self.starts[long, other], self.lengths[long]

    def rows(self, atoms: Atoms) -> Iterator[Row]:
        """The rows between atoms."""
        starts, whys = self.starts, self.whys
        if self.moving:
            first = self.starts[:, self.moving[0]]
            low, high = atoms.at(first), atoms.at(first + self.lengths - 1)
            owner, offset = _spread(high - low + 1)
            moved = atoms.starts[low[owner] + offset] - first[owner]
            starts = starts[owner] + moved[:, None] * np.array(self.steps)
            whys = whys[owner]
        for members, why in zip(atoms.at(starts).tolist(), whys.tolist(), strict=True):
            yield Row(tuple(members), self.powers, why)


def _spread(counts: Array) -> tuple[Array, Array]:
    """For owners with several items each: the owner of every item, and its number there."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def _closed(points: Array, batches: Sequence[_Batch]) -> Array:
    """Carries every cut over to the ranges that are tied to it, until none is new."""
    links = [link for batch in batches for link in batch.links()]
    if not links:
        return points
    one, two, size = (np.concatenate(parts) for parts in zip(*links, strict=True))
    one, two, size = (
        np.concatenate([one, two]),
        np.concatenate([two, one]),
        np.concatenate([size, size]),
    )
    while True:
        low = np.searchsorted(points, one, side="right")
        high = np.searchsorted(points, one + size, side="left")
        owner, offset = _spread(high - low)
        carried = points[low[owner] + offset] - one[owner] + two[owner]
        grown = np.union1d(points, carried)
        if len(grown) == len(points):
            return points
        points = grown
