"""A basis of the solutions: which classes are free, and the others as combinations of them.

Many bases describe the same freedom. This one is the basis of channel pairs: a class is expressed
by others, best first, when it is

    1. a depthwise kernel: the channels before and after it stay free;
    2. the only kernel that makes the channels of its row: the scale of a norm behind it and the
       channels behind the norm stay free, so that pairs are those of the network without norm;
    3. the class that the fewest leaves belong to.

The invariant: a scalar class is never expressed by one of several channels.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from flaxcle.discover.atoms import Atoms, Row
from flaxcle.discover.classes import Classes, Combination
from flaxcle.discover.symbols import Block
from flaxcle.rules.scale import Power

MAKERS = ("out", "through", "joint")


@dataclass
class Touch:
    """The leaves that a class scales: kernels that make its channels, that read them, and all.

    `sign`: whether makers are multiplied when the class grows; a root may stand for the inverse.
    """

    sign: int = 0
    makers: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)
    through: set[str] = field(default_factory=set)
    leaves: set[str] = field(default_factory=set)

    def enter(self, block: Block, ratio: Power) -> None:
        """Counts a leaf in."""
        makes = block.role.kind in MAKERS
        self.sign = self.sign or (1 if makes == (ratio > 0) else -1)
        self.leaves.add(block.leaf)
        if block.is_kernel:
            (self.makers if makes else self.readers).add(block.leaf)
            if block.role.kind == "through":
                self.through.add(block.leaf)

    def join(self, other: Touch, power: Power) -> None:
        """Counts in a class that follows this one; who follows inversely reads what others make."""
        self.sign = self.sign or 1
        same = power * self.sign * (other.sign or 1) > 0
        self.leaves |= other.leaves
        self.makers |= other.makers if same else other.readers
        self.readers |= other.readers if same else other.makers

    @property
    def makes(self) -> bool:
        """Whether this is one kernel's product and nobody's input."""
        return len(self.makers) == 1 and not self.readers


def touches(blocks: Sequence[Block], atoms: Atoms, classes: Classes) -> dict[int, Touch]:
    """What every free class scales."""
    out: dict[int, Touch] = {}
    for block in blocks:
        for atom in atoms.within(block.base, block.size):
            root, ratio = classes.find(atom)
            if root not in classes.fixed:
                out.setdefault(root, Touch()).enter(block, ratio)
    return out


class Basis:
    """Eliminates one class per row; `pivots` keeps the combinations in order of elimination."""

    def __init__(self, classes: Classes, rows: Iterable[Row], touch: dict[int, Touch]) -> None:
        self.pivots: dict[int, Combination] = {}
        self._classes = classes
        self._touch = touch
        self._rows = {number: classes.combine(row) for number, row in enumerate(rows)}
        self._whys = {number: row.why for number, row in enumerate(rows)}
        self._columns: dict[int, set[int]] = {}
        for number, row in self._rows.items():
            for root in row:
                self._columns.setdefault(root, set()).add(number)
        self._peel()
        self._reduce()

    def combination(self, root: int) -> Combination:
        """A class as a combination of free classes."""
        if root in self._classes.fixed:
            return {}
        return self._resolved.get(root, {root: 1})

    def _peel(self) -> None:
        """Takes rows in which some class stands that stands in no other row."""
        heap: list[tuple[tuple[int, int, bool], int, int]] = []
        for root, numbers in self._columns.items():
            self._push(heap, root, numbers)
        while heap:
            cost, number, root = heapq.heappop(heap)
            if number not in self._rows or len(self._columns[root]) != 1:
                continue
            if cost != (now := self._cost(number, root)):
                heapq.heappush(heap, (now, number, root))
                continue
            self._take(number, root)
            for other, power in self.pivots[root].items():
                self._touch.setdefault(other, Touch()).join(self._touch.get(root, Touch()), power)
                self._push(heap, other, self._columns[other])

    def _push(
        self, heap: list[tuple[tuple[int, int, bool], int, int]], root: int, numbers: set[int]
    ) -> None:
        if len(numbers) == 1:
            (number,) = numbers
            if self._may_leave(root, number):
                heapq.heappush(heap, (self._cost(number, root), number, root))

    def _may_leave(self, root: int, number: int) -> bool:
        """One scale for all channels can't be expressed by the scale of each."""
        sizes = self._classes.sizes
        return sizes[root] > 1 or all(sizes[other] == 1 for other in self._rows[number])

    def _cost(self, number: int, root: int) -> tuple[int, int, bool]:
        touch = self._touch.get(root, Touch())
        if touch.through and touch.makes:
            tier = 0
        elif touch.makes and sum(self._makes(other) for other in self._rows[number]) == 1:
            tier = 1
        else:
            tier = 2
        return tier, len(touch.leaves), not touch.readers

    def _makes(self, root: int) -> bool:
        return root in self._touch and self._touch[root].makes

    def _take(self, number: int, root: int) -> None:
        """Expresses a class by the others of a row, and the row is done."""
        row = self._rows.pop(number)
        power = row.pop(root)
        self.pivots[root] = {r: _over(-p, power) for r, p in row.items()}
        for other in row:
            self._columns[other].discard(number)
        del self._columns[root]

    def _reduce(self) -> None:
        """What is left is solved by elimination, shortest rows first."""
        while self._rows:
            number = min(self._rows, key=lambda n: len(self._rows[n]))
            choices = [root for root in self._rows[number] if self._may_leave(root, number)]
            if not choices:
                self._rows.pop(number)
                continue
            root = min(choices, key=lambda r: (len(self._columns[r]), self._cost(number, r), r))
            readers = self._columns[root] - {number}
            self._take(number, root)
            for reader in readers:
                self._substitute(reader, root)

    def _substitute(self, number: int, root: int) -> None:
        row = self._rows[number]
        power = row.pop(root)
        for other, factor in self.pivots[root].items():
            row[other] = row.get(other, 0) + power * factor
            self._columns[other].add(number)
            if not row[other]:
                del row[other]
                self._columns[other].discard(number)

    @property
    def _resolved(self) -> Mapping[int, Combination]:
        if not hasattr(self, "_cache"):
            self._cache: dict[int, Combination] = {}
            for root, row in reversed(self.pivots.items()):
                self._cache[root] = _expanded(row, self._cache)
        return self._cache


def _over(one: Power, two: Power) -> Power:
    if two in (1, -1):
        return one * two
    ratio = Fraction(one) / two
    return int(ratio) if ratio.denominator == 1 else ratio


def _expanded(row: Combination, known: Mapping[int, Combination]) -> Combination:
    out: Combination = {}
    for root, power in row.items():
        for free, factor in known.get(root, {root: 1}).items():
            out[free] = out.get(free, 0) + power * factor
    return {root: power for root, power in out.items() if power}
