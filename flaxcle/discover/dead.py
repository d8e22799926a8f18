"""Free classes on which no output depends: they are no scales that anybody can choose.

A channel that is sliced away is made but never read; the kernel rows behind padded zeros are read
but multiply nothing. The invariant: a class is dead only if each of its leaves, alone, could
change at its positions without changing the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from flaxcle.discover.atoms import Atoms, Row
from flaxcle.discover.classes import Classes, Combination
from flaxcle.discover.symbols import Block
from flaxcle.rules.context import Context
from flaxcle.rules.scale import Term

READERS = ("in", "grouped")


def dead_classes(
    context: Context,
    blocks: Sequence[Block],
    atoms: Atoms,
    classes: Classes,
    rows: Sequence[Row],
) -> set[int]:
    """Classes that nothing reads, and classes of zeros that no leaf makes.

    Who reads one class of an equation reads them all: a product and its parts, both sides of a sum.
    """
    sets = ({classes.find(atom)[0] for atom in row.atoms} for row in rows)
    tied = [roots for roots in sets if len(roots) > 1]
    read = _spread(_roots(context.read, atoms, classes), tied)
    zeros = _roots(context.zeros, atoms, classes)
    made, held = set(), set()
    for block in blocks:
        roots = {classes.find(atom)[0] for atom in atoms.within(block.base, block.size)}
        held |= roots
        if block.role.kind not in READERS:
            made |= roots
    return (held - read) | (zeros - made).difference(*tied)


def _spread(found: set[int], tied: Sequence[set[int]]) -> set[int]:
    """All classes that hang together with those found."""
    neighbours: dict[int, set[int]] = {}
    for roots in tied:
        for root in roots:
            neighbours.setdefault(root, set()).update(roots)
    seen, todo = set(found), list(found)
    while todo:
        new = neighbours.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


def _roots(terms: Iterable[Term], atoms: Atoms, classes: Classes) -> set[int]:
    """The classes of all symbols of the terms."""
    out: set[int] = set()
    for base, moves in {(term.base, _moves(term)) for term in terms}:
        starts, length = _ranges(base, moves)
        for start in starts.tolist():
            out |= {classes.find(atom)[0] for atom in atoms.within(start, length)}
    return out


def _moves(term: Term) -> tuple[tuple[int, int], ...]:
    """Step and length of every index that moves through the symbols, small steps first."""
    dims = [dim for along in term.axes for dim in along.dims if dim.step]
    return tuple(sorted(((dim.step, dim.length) for dim in dims), key=lambda m: abs(m[0])))


def _ranges(base: int, moves: Sequence[tuple[int, int]]) -> tuple[np.ndarray, int]:
    """The symbols of a box as ranges of one length."""
    starts, length = np.array([base]), 1
    for step, count in moves:
        if abs(step) == length and len(starts) == 1:
            starts = starts + min(step * (count - 1), 0)
            length *= count
        else:
            starts = (starts[:, None] + step * np.arange(count)).ravel()
    return starts, length


def without(dead: set[int], moves: Mapping[int, Combination]) -> dict[int, Combination]:
    """The moves that are left."""
    if not dead:
        return dict(moves)
    return {
        atom: {root: power for root, power in move.items() if root not in dead}
        for atom, move in moves.items()
    }
