"""Classes of atoms that move together: a union-find with rational ratios.

    atom = ratio * root

Rows are taken in program order. A row with one class left fixes it at zero, a row with two ties
them, longer rows wait until classes are tied or fixed. The invariant: a class is fixed once, and
`fixed[root]` is the first equation, in program order, that leaves it no freedom; `tied[root]` is
the last one that tied two classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from flaxcle.discover.atoms import Row
from flaxcle.rules.scale import Power

Combination = dict[int, Power]


class Classes:
    """The state: parents, ratios, reasons, and rows that wait for their classes."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        self.fixed: dict[int, int] = {}
        self.tied: dict[int, int] = {}
        self._parent = list(range(len(self.sizes)))
        self._ratio: list[Power] = [1] * len(self.sizes)
        self._rows: list[Row | None] = []
        self._waiting: dict[int, list[int]] = {}

    def find(self, atom: int) -> tuple[int, Power]:
        """The root of an atom, and their ratio."""
        path = []
        while self._parent[atom] != atom:
            path.append(atom)
            atom = self._parent[atom]
        ratio: Power = 1
        for member in reversed(path):
            ratio = self._ratio[member] * ratio
            self._parent[member], self._ratio[member] = atom, ratio
        return atom, (self._ratio[path[0]] if path else 1)

    def solve(self, rows: Iterable[Row]) -> list[Row]:
        """Takes all rows; returns those that still tie three classes or more."""
        for row in rows:
            self._take(row)
        return [row for row in self._rows if row is not None and len(self.combine(row)) > 2]

    def combine(self, row: Row) -> Combination:
        """A row between roots."""
        out: Combination = {}
        for atom, power in zip(row.atoms, row.powers, strict=True):
            root, ratio = self.find(atom)
            if root not in self.fixed:
                out[root] = out.get(root, 0) + power * ratio
        return {root: power for root, power in out.items() if power}

    def _take(self, row: Row) -> None:
        todo = [row]
        while todo:
            row = todo.pop()
            found = self.combine(row)
            if len(found) > 2:
                self._wait(row, found)
                continue
            if found:
                changed = (self._fix if len(found) == 1 else self._tie)(found, row.why)
                todo += self._wake(changed, row)

    def _wait(self, row: Row, found: Combination) -> None:
        number = len(self._rows)
        self._rows.append(row)
        for root in found:
            self._waiting.setdefault(root, []).append(number)

    def _fix(self, found: Combination, why: int) -> int:
        (root,) = found
        self.fixed[root] = why
        return root

    def _tie(self, found: Combination, why: int) -> int:
        """Ties two classes and returns the one that is a root no more.

        A symbol that stands for many must stay a root, else the class for which more rows wait.
        """
        (one, a), (two, b) = sorted(found.items(), key=self._rank)
        ratio = -(b if a == 1 else b * a if a == -1 else Fraction(b) / a)
        self._parent[one] = two
        self.tied[two] = max(why, self.tied.get(one, 0), self.tied.get(two, 0))
        self._ratio[one] = int(ratio) if ratio == int(ratio) else ratio
        return one

    def _rank(self, item: tuple[int, Power]) -> tuple[bool, int]:
        root, _ = item
        return self.sizes[root] == 1, len(self._waiting.get(root, ()))

    def _wake(self, root: int, cause: Row) -> list[Row]:
        """Rows that wait for a class that has changed; they are looked at again."""
        out = []
        for number in dict.fromkeys(self._waiting.pop(root, ())):
            row = self._rows[number]
            if row is not None:
                self._rows[number] = None
                out.append(row._replace(why=max(row.why, cause.why)))
        return out
