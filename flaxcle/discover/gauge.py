"""Directions that change no leaf: moves of the free classes whose factors cancel in every leaf.

A kernel's factors `s_in[k] * s_out[n]` cancel when one is a constant and the other its inverse, so
only constants can cancel: the search is for one number per free class. The invariant: after one
class (or one of its channels) is given up for each direction found, no direction is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

from flaxcle.discover.atoms import Atoms
from flaxcle.discover.classes import Combination
from flaxcle.discover.symbols import Block
from flaxcle.rules.scale import Power


def settled(
    blocks: Sequence[Block],
    atoms: Atoms,
    moves: Mapping[int, Combination],
    sizes: Sequence[int],
) -> dict[int, Combination]:
    """The same moves, with a constant that one factor of a leaf carries handed to another.

    What two factors of a leaf carry with opposite signs is gone then.
    """
    out = dict(moves)
    leaves: dict[str, list[Block]] = {}
    for block in blocks:
        leaves.setdefault(block.leaf, []).append(block)
    for own in leaves.values():
        for block in own[:-1]:
            _hand_over(block, own[-1], atoms, out, sizes)
    return out


def _hand_over(
    block: Block, heir: Block, atoms: Atoms, moves: dict[int, Combination], sizes: Sequence[int]
) -> None:
    members = atoms.within(block.base, block.size)
    first = moves[members[0]]
    common = {
        root: power
        for root, power in first.items()
        if sizes[root] == 1 and all(moves[atom].get(root) == power for atom in members)
    }
    if common:
        less = {root: -power for root, power in common.items()}
        moves.update({atom: _sum((moves[atom], less)) for atom in members})
        heirs = atoms.within(heir.base, heir.size)
        moves.update({atom: _sum((moves[atom], common)) for atom in heirs})


def redundant(
    blocks: Sequence[Block],
    atoms: Atoms,
    moves: Mapping[int, Combination],
    sizes: Sequence[int],
) -> list[int]:
    """Free classes of which one channel is redundant; scalars are preferred.

    Args:
        blocks: factors of all leaves.
        atoms: ranges of symbols.
        moves: each atom as a combination of free classes.
        sizes: channels of each class.
    """
    rows = {tuple(sorted(row.items())): row for row in _leaf_rows(blocks, atoms, moves) if row}
    live = {root for move in moves.values() for root in move}
    _exclude(live, rows.values())
    left = [{r: p for r, p in row.items() if r in live} for row in rows.values()]
    return _dependent(live, [row for row in left if row], sizes)


def _leaf_rows(
    blocks: Sequence[Block], atoms: Atoms, moves: Mapping[int, Combination]
) -> Iterator[Combination]:
    """The whole scale of a leaf at positions that tell all its atoms apart."""
    leaves: dict[str, list[Block]] = {}
    for block in blocks:
        leaves.setdefault(block.leaf, []).append(block)
    for own in leaves.values():
        for block in own:
            symbols = atoms.starts[list(atoms.within(block.base, block.size))]
            places = block.places(symbols - block.base)
            columns = [atoms.at(other.base + other.symbols(places)).tolist() for other in own]
            for members in zip(*columns, strict=True):
                yield _sum(moves[atom] for atom in members)


def _sum(parts: Iterable[Combination]) -> Combination:
    out: Combination = {}
    for part in parts:
        for root, power in part.items():
            out[root] = out.get(root, 0) + power
    return {root: power for root, power in out.items() if power}


def _exclude(live: set[int], rows: Iterable[Combination]) -> None:
    """A class that stands alone in a row can't cancel."""
    todo = list(rows)
    while True:
        alone = {found[0] for row in todo if len(found := [r for r in row if r in live]) == 1}
        if not alone:
            return
        live -= alone


def _dependent(live: set[int], rows: list[Combination], sizes: Sequence[int]) -> list[int]:
    """The classes that Gaussian elimination leaves without a pivot, scalars last."""
    order = sorted(live, key=lambda root: (sizes[root] == 1, root))
    free = []
    for root in order:
        row = next((r for r in rows if root in r), None)
        if row is None:
            free.append(root)
            continue
        rows = [_reduced(r, row, root) for r in rows if r is not row]
        rows = [r for r in rows if r]
    return free


def _reduced(row: Combination, pivot: Combination, root: int) -> Combination:
    if root not in row:
        return row
    factor: Power = -(Fraction(row[root]) / pivot[root])
    return _sum((row, {r: p * factor for r, p in pivot.items()}))
