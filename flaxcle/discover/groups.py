"""From free classes to groups: which leaves a class multiplies, at which positions.

Classes that touch the same factors of the same leaves with the same powers are channels of one
group. The invariant: groups stand in the order of their first producer, and the leaf that the
function uses first has power one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from flaxcle.discover.atoms import Atoms
from flaxcle.discover.classes import Combination
from flaxcle.discover.names import group_name, module_names
from flaxcle.discover.symbols import Block
from flaxcle.rules.scale import Power
from flaxcle.spec import Group, Index, Run, Site

Key = tuple[int, Power, bool]


class Member(NamedTuple):
    """An atom of a block that a class multiplies; `uniform`: one scale for the whole range."""

    block: int
    atom: int
    power: Power
    uniform: bool


def make_groups(
    blocks: Sequence[Block],
    atoms: Atoms,
    moves: Mapping[int, Combination],
    sizes: Sequence[int],
    spare: Sequence[int],
) -> tuple[Group, ...]:
    """The groups of all free classes; `blocks` stand in order of use, `spare` lose a channel."""
    channels = {root: (1 if root in spare else 0, sizes[root]) for root in range(len(sizes))}
    classes = [
        (root, _oriented(members))
        for root, members in _members(blocks, atoms, moves, sizes).items()
        if channels[root][0] < channels[root][1]
    ]
    groups = [_group(blocks, atoms, family, channels) for family in _families(classes)]
    kernels = {block.leaf for block in blocks if block.is_kernel}
    return tuple(_held(_named(groups, kernels), kernels))


def _members(
    blocks: Sequence[Block],
    atoms: Atoms,
    moves: Mapping[int, Combination],
    sizes: Sequence[int],
) -> dict[int, list[Member]]:
    out: dict[int, list[Member]] = {}
    for number, block in enumerate(blocks):
        for atom in atoms.within(block.base, block.size):
            for root, power in moves[atom].items():
                uniform = sizes[root] == 1 and int(atoms.sizes[atom]) > 1
                out.setdefault(root, []).append(Member(number, atom, power, uniform))
    return out


def _oriented(members: list[Member]) -> list[Member]:
    """The first member gets power one."""
    first = members[0].power
    if first == 1:
        return members
    return [m._replace(power=_whole(Fraction(m.power) / first)) for m in members]


def _whole(power: Fraction) -> Power:
    return int(power) if power.denominator == 1 else power


Family = list[tuple[int, list[Member]]]


def _families(classes: Family) -> Iterator[Family]:
    """Classes that touch the same factors, but never the same positions, in order."""
    found: dict[frozenset[Key], list[tuple[Family, set[int]]]] = {}
    families: list[Family] = []
    for root, members in sorted(classes, key=lambda item: item[1][0][:2]):
        key = frozenset((m.block, m.power, m.uniform) for m in members)
        own = {m.atom for m in members}
        for family, taken in found.setdefault(key, []):
            if not taken & own:
                family.append((root, members))
                taken |= own
                break
        else:
            families.append([(root, members)])
            found[key].append((families[-1], own))
    return iter(families)


class Row(NamedTuple):
    """A site before the group has a shape: the channels of a block's symbols, in order."""

    block: Block
    power: Power
    runs: tuple[Run, ...]


def _group(
    blocks: Sequence[Block],
    atoms: Atoms,
    family: Family,
    channels: Mapping[int, tuple[int, int]],
) -> Group:
    found: dict[tuple[int, Power], dict[int, list[Run]]] = {}
    start = 0
    for root, members in family:
        skip, size = channels[root]
        for member in members:
            runs = _runs(start, skip, size, int(atoms.sizes[member.atom]))
            found.setdefault((member.block, member.power), {})[member.atom] = runs
        start += size - skip
    rows = [
        Row(blocks[number], power, _spelled(blocks[number], atoms, pieces))
        for (number, power), pieces in sorted(found.items(), key=lambda item: item[0][0])
    ]
    shape = next((row.block.extent for row in rows if _is_plain(row, start)), None) or (start,)
    return Group("?", shape, tuple(_site(row, shape, start) for row in rows))


def _runs(start: int, skip: int, size: int, length: int) -> list[Run]:
    """The channels of one atom; a class of which a channel is spare leaves its first one out."""
    if size == 1:
        return [Run(start, 1, 1, repeat=length)]
    head = [Run(-1, skip, 0)] if skip else []
    return [*head, Run(start, length - skip)]


def _spelled(block: Block, atoms: Atoms, found: Mapping[int, list[Run]]) -> tuple[Run, ...]:
    """The channels of all the symbols of a block, in order; neighbours are joined."""
    out: list[Run] = []
    for atom in atoms.within(block.base, block.size):
        for run in found.get(atom) or [Run(-1, int(atoms.sizes[atom]), 0)]:
            last = out[-1] if out else None
            if last and last.repeat == run.repeat == 1 and _continues(last, run):
                out[-1] = last._replace(length=last.length + run.length)
            else:
                out.append(run)
    return tuple(out)


def _continues(last: Run, run: Run) -> bool:
    if last.start < 0 or run.start < 0:
        return last.start == run.start
    return run.start == last.start + last.length


def _is_plain(row: Row, size: int) -> bool:
    """Whether a leaf lists the group's channels in order."""
    return (
        row.runs == (Run(0, size),) and row.block.role.kind != "grouped" and row.block.extent != ()
    )


def _site(row: Row, shape: tuple[int, ...], size: int) -> Site:
    """A row of the table; a grouped kernel's channels are spread over in-axis and out-axis."""
    block, power = row.block, Fraction(row.power)
    if _is_plain(row, size) and block.extent == shape:
        return Site(block.leaf, block.role.axes, power)
    if block.role.kind != "grouped":
        return Site(block.leaf, block.role.axes, power, _index(block.extent, row.runs))
    inner, outer = block.role.axes
    ins, outs = np.indices((block.shape[inner], block.shape[outer]))
    places = {inner: ins.ravel(), outer: outs.ravel()}
    channels = np.asarray(_index((block.size,), row.runs))[block.symbols(places)]
    return Site(block.leaf, block.role.axes, power, Index.of(channels.reshape(ins.shape)))


@lru_cache(maxsize=4096)
def _index(shape: tuple[int, ...], runs: tuple[Run, ...]) -> Index:
    """Layers that are alike share an index."""
    return Index(shape, runs)


def _named(groups: Sequence[Group], kernels: Collection[str]) -> list[Group]:
    counts: dict[str, int] = {}
    out = []
    modules = module_names(kernels)
    for group in groups:
        name = group_name(group, modules)
        counts[name] = counts.get(name, 0) + 1
        out.append(replace(group, name=name if counts[name] == 1 else f"{name} #{counts[name]}"))
    return out


def _held(groups: list[Group], kernels: Collection[str]) -> list[Group]:
    """Shared channels and factors inside a norm stay at one unless they are asked for."""

    def among(sites: Sequence[Site]) -> set[str]:
        return {site.path for site in sites if site.path in kernels}

    inner = [not among(group.consumers) for group in groups]
    shared = [len(among(group.producers)) > 1 for group in groups]
    if all(i or s for i, s in zip(inner, shared, strict=True)):
        shared = [False] * len(groups)
    return [replace(group, held=i or s) for group, i, s in zip(groups, inner, shared, strict=True)]
