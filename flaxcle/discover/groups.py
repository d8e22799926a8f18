"""From free classes to groups: which leaves a class multiplies, at which positions.

Classes that touch the same factors of the same leaves with the same powers are channels of one
group. The invariant: groups stand in the order of their first producer, and the leaf that the
function uses first has power one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from flaxcle.discover.atoms import Atoms
from flaxcle.discover.classes import Combination
from flaxcle.discover.names import group_name
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


def _group(
    blocks: Sequence[Block],
    atoms: Atoms,
    family: Family,
    channels: Mapping[int, tuple[int, int]],
) -> Group:
    rows: dict[tuple[int, Power], dict[int, list[Run]]] = {}
    start = 0
    for root, members in family:
        skip, size = channels[root]
        for member in members:
            runs = _runs(start, skip, size, int(atoms.sizes[member.atom]))
            rows.setdefault((member.block, member.power), {})[member.atom] = runs
        start += size - skip
    sites = [
        _site(blocks[number], power, _spelled(blocks[number], atoms, found))
        for (number, power), found in sorted(rows.items(), key=lambda row: row[0][0])
    ]
    return _shaped(sites, blocks, start)


def _runs(start: int, skip: int, size: int, length: int) -> list[Run]:
    """The channels of one atom; a class of which a channel is spare leaves its first one out."""
    if size == 1:
        return [Run(start, 1, 1, repeat=length)]
    head = [Run(-1, skip, 0)] if skip else []
    return [*head, Run(start, length - skip)]


def _spelled(block: Block, atoms: Atoms, found: Mapping[int, list[Run]]) -> list[Run]:
    """The channels of all the symbols of a block, in order."""
    out: list[Run] = []
    for atom in atoms.within(block.base, block.size):
        for run in found.get(atom, [Run(-1, int(atoms.sizes[atom]), 0)]):
            _append(out, run)
    tiled: list[Run] = []
    for run in out:
        if tiled and run.start >= 0 and tiled[-1]._replace(tile=1) == run:
            tiled[-1] = tiled[-1]._replace(tile=tiled[-1].tile + 1)
        else:
            tiled.append(run)
    return tiled


def _append(runs: list[Run], run: Run) -> None:
    """Adds a run, as part of the last one where it continues it."""
    last = runs[-1] if runs else None
    joins = last is not None and last.repeat == run.repeat
    if joins and last.start < 0 and run.start < 0:
        runs[-1] = last._replace(length=last.length + run.length)
    elif joins and 0 <= last.start and run.start == last.start + last.length:
        runs[-1] = last._replace(length=last.length + run.length)
    else:
        runs.append(run)


def _site(block: Block, power: Power, runs: list[Run]) -> Site:
    """The row; a grouped kernel's channels are spread over in-axis and out-axis."""
    index = Index((block.size,), tuple(runs))
    if block.role.kind == "grouped":
        inner, outer = block.role.axes
        ins, outs = np.indices((block.shape[inner], block.shape[outer]))
        places = {inner: ins.ravel(), outer: outs.ravel()}
        channels = np.asarray(index)[block.symbols(places)].reshape(ins.shape)
        return Site(block.leaf, block.role.axes, Fraction(power), Index.of(channels))
    return Site(block.leaf, block.role.axes, Fraction(power), Index(block.extent, tuple(runs)))


def _shaped(sites: list[Site], blocks: Sequence[Block], size: int) -> Group:
    """The group has the shape of the first site that lists the channels in order."""
    shape = next((s.index.shape for s in sites if s.index and _plain(s.index, size)), None)
    shape = shape or (size,)
    rows = tuple(
        replace(s, index=None)
        if s.index and s.index.shape == shape and _plain(s.index, size)
        else s
        for s in sites
    )
    return Group("?", shape, rows)


def _plain(index: Index, size: int) -> bool:
    return index.runs == (Run(0, size),) and index.shape != ()


def _named(groups: Sequence[Group], kernels: Collection[str]) -> list[Group]:
    counts: dict[str, int] = {}
    out = []
    for group in groups:
        name = group_name(group, kernels)
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
    return [
        replace(group, held=i or s) for group, i, s in zip(groups, inner, shared, strict=True)
    ]
