"""A spec in parts that share no leaf, where many of them are alike.

The blocks of a deep network have equal shapes and equal rows, under other names. Renamed, they are
equal specs, so what is compiled for one of them serves all, and compile time does not grow with
depth. The invariant: every group is in one part, and every leaf of a part in no other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from flaxcle.paths import dtype_of, shape_of
from flaxcle.spec.table import Group, Spec

MANY = 8  # of equal parts; fewer don't make up for the calls

Kind = tuple[tuple[int, ...], Any]
Value = TypeVar("Value")


@dataclass(frozen=True)
class Part:
    """Groups that share no leaf with others, perhaps under other names.

    Attributes:
        spec: the groups, under the names of the part.
        groups: name in the part -> name in the whole spec.
        paths: path in the part -> path in the whole tree.
    """

    spec: Spec
    groups: Mapping[str, str]
    paths: Mapping[str, str]

    def leaves(self, tree: Mapping[str, Value]) -> dict[str, Value]:
        """The values of the part's paths, as far as there are any, under its names."""
        return {own: tree[path] for own, path in self.paths.items() if path in tree}


def parts_of(spec: Spec, leaves: Mapping[str, Any]) -> tuple[Part, ...]:
    """Parts of which many are alike, one by one, and all the rest as a part that keeps its names.

    Args:
        spec: groups that fit the leaves.
        leaves: arrays or their shapes by path.
    """
    kinds = ((path, (shape_of(leaves[path]), dtype_of(leaves[path]))) for path in spec.paths)
    return _parts(spec, tuple(kinds))


@lru_cache(maxsize=256)
def _parts(spec: Spec, kinds: tuple[tuple[str, Kind], ...]) -> tuple[Part, ...]:
    kind_of = dict(kinds)
    found = [_renamed(groups) for groups in _apart(spec)]
    looks = [(part.spec, *(kind_of[path] for path in part.paths.values())) for part in found]
    count = Counter(looks)
    alike = [part for part, look in zip(found, looks, strict=True) if count[look] >= MANY]
    taken = {name for part in alike for name in part.groups.values()}
    rest = [group for group in spec.groups if group.name not in taken]
    return (*alike, _kept(rest)) if rest else tuple(alike)


def _apart(spec: Spec) -> list[list[Group]]:
    """The groups, those that share a leaf together, in the order of the spec."""
    owner: dict[str, int] = {}
    members: dict[int, list[int]] = {}
    for number, group in enumerate(spec.groups):
        touched = {owner[site.path] for site in group.sites if site.path in owner}
        own = sorted([number, *(other for one in touched for other in members.pop(one))])
        members[number] = own
        owner |= {site.path: number for other in own for site in spec.groups[other].sites}
    ordered = sorted(members.values())
    return [[spec.groups[number] for number in numbers] for numbers in ordered]


def _renamed(groups: list[Group]) -> Part:
    """The part under names that count its groups and paths."""
    paths = dict.fromkeys(site.path for group in groups for site in group.sites)
    short = {path: str(number) for number, path in enumerate(paths)}
    renamed = [
        replace(
            group,
            name=str(number),
            sites=tuple(replace(site, path=short[site.path]) for site in group.sites),
        )
        for number, group in enumerate(groups)
    ]
    names = {new.name: old.name for new, old in zip(renamed, groups, strict=True)}
    return Part(Spec(tuple(renamed)), names, {own: path for path, own in short.items()})


def _kept(groups: list[Group]) -> Part:
    spec = Spec(tuple(groups))
    names = {group.name: group.name for group in groups}
    return Part(spec, names, {path: path for path in spec.paths})
