"""Equations between atoms, solved one by one for the symbols that a spec does not declare.

The invariant: declared symbols are never solved for, so what is left of a row that holds only
declared ones is a condition on the spec.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from flaxcle.discover.atoms import Atoms, Row
from flaxcle.discover.classes import Combination
from flaxcle.rules.scale import Power


@dataclass
class System:
    """Equations solved one by one for the symbols that the spec does not declare."""

    atoms: Atoms
    declared: int

    def __post_init__(self) -> None:
        self._solved: dict[int, Combination] = {}

    def take(self, row: Row) -> Combination:
        """Solves a row; returns what is left when no symbol of the analysis can."""
        left = self.reduced(zip(row.atoms, row.powers, strict=True))
        long = any(self.atoms.sizes[atom] > 1 for atom in left)
        pivot = next((atom for atom in left if self._may_leave(atom, long)), None)
        if pivot is None:
            return left
        power = left.pop(pivot)
        self._solved[pivot] = {atom: -Fraction(p) / power for atom, p in left.items()}
        return {}

    def _may_leave(self, atom: int, long: bool) -> bool:
        free = self.atoms.starts[atom] >= self.declared
        return bool(free and (self.atoms.sizes[atom] > 1 or not long))

    def reduced(self, terms: Iterable[tuple[int, Power]]) -> Combination:
        """A sum of atoms in terms of those that no row was solved for."""
        out: Combination = {}
        todo = list(terms)
        while todo:
            atom, power = todo.pop()
            if atom in self._solved:
                todo += [(other, power * p) for other, p in self._solved[atom].items()]
            else:
                out[atom] = out.get(atom, 0) + power
        return {atom: power for atom, power in out.items() if power}
