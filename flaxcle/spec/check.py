"""Does a spec fit a params tree? Every mismatch is an error that names path, axis and shape.

Only shapes and dtypes are read, so `ShapeDtypeStruct` leaves do, and it costs nothing under `jit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from flaxcle.errors import PathError, SpecError, WeightError, closest
from flaxcle.paths import PyTree, is_float, named_leaves, shape_of
from flaxcle.spec.table import Group, Site, Spec, channels, normal_axes


def check_fit(spec: Spec, params: PyTree) -> dict[str, Any]:
    """Checks every row of the spec against the leaves and returns the leaves by path.

    Raises:
        SpecError: empty spec, wrong axis, shapes that don't match, a zero-size axis, or two
            groups that read the same axis with contradicting indices.
        PathError: a path that the tree does not have.
        WeightError: a leaf that is not a real floating-point array.
    """
    if not spec.groups:
        raise SpecError(
            "the spec has no groups, so there is nothing to scale",
            then="declare pairs with Spec.from_pairs, or look at spec.blocked for the reasons",
        )
    leaves = named_leaves(params)
    for path in spec.paths:
        if path not in leaves:
            raise PathError(
                f"the spec scales {path!r}, which the tree does not have",
                where="group " + next(repr(g.name) for g in spec.groups if path in _paths(g)),
                then=f"use one of {closest(path, leaves)}",
            )
    _check_looks(spec, tuple((path, _look_of(leaves[path])) for path in spec.paths))
    return leaves


class _Look(NamedTuple):
    """All that is checked of a leaf."""

    shape: tuple[int, ...]
    dtype: Any


def _look_of(leaf: Any) -> _Look:
    return _Look(shape_of(leaf), getattr(leaf, "dtype", type(leaf)))


def _paths(group: Group) -> set[str]:
    return {site.path for site in group.sites}


@lru_cache(maxsize=256)
def _check_looks(spec: Spec, looks: tuple[tuple[str, _Look], ...]) -> None:
    """Done once for each spec and tree: in a training loop the same ones come again and again."""
    leaves = dict(looks)
    for group in spec.groups:
        for site in group.sites:
            _check_site(group, site, leaves[site.path])
    _check_agreement(spec, leaves)


def _check_site(group: Group, site: Site, leaf: _Look) -> None:
    where = f"{site.path!r} of shape {leaf.shape}, axes {site.axes}, group {group.name!r}"
    if not is_float(leaf):
        raise WeightError(
            f"can't scale a leaf of dtype {getattr(leaf.dtype, '__name__', leaf.dtype)}",
            where=where,
            then="take it out of the spec, or equalize before quantizing or casting",
        )
    rank = len(leaf.shape)
    if any(not -rank <= axis < rank for axis in site.axes):
        raise SpecError(f"axis out of range for rank {rank}", where=where)
    if len(set(normal_axes(site, rank))) != len(site.axes):
        raise SpecError("a site names an axis twice", where=where)
    _check_extent(group, site, tuple(leaf.shape[axis] for axis in site.axes), where)


def _check_extent(group: Group, site: Site, extent: tuple[int, ...], where: str) -> None:
    if 0 in extent:
        raise SpecError("a site has an axis of size zero", where=where, then="drop this layer")
    if site.index is None:
        if extent != group.shape:
            raise SpecError(
                f"the axes have extent {extent}, the group has shape {group.shape}",
                where=where,
                then="name the right axes, or give an index that maps positions to channels",
            )
    elif site.index.shape != extent:
        raise SpecError(
            f"the index has shape {site.index.shape}, the axes have extent {extent}", where=where
        )
    elif site.index.highest >= group.size:
        raise SpecError(
            f"the index names channel {site.index.highest}, the group has {group.size}",
            where=where,
        )


def _check_agreement(spec: Spec, leaves: Mapping[str, _Look]) -> None:
    """Two groups on the same axes must not cut them across each other.

    Opposite signs may: a depthwise kernel with a multiplier reads `p // m` and makes `p`.
    """
    seen: dict[tuple[str, tuple[int, ...], bool], list[tuple[Group, Site]]] = {}
    for group in spec.groups:
        for site in group.sites:
            shape = leaves[site.path].shape
            key = (site.path, normal_axes(site, len(shape)), site.power > 0)
            for other, row in seen.setdefault(key, []):
                if other is not group and _cross(site, row, shape):
                    raise SpecError(
                        "two groups read the same axis with contradicting indices",
                        where=f"{site.path!r} of shape {shape}, axes {site.axes}, "
                        f"groups {other.name!r} and {group.name!r}",
                        then="give both the same channels, or join them into one group",
                    )
            seen[key].append((group, site))


def _cross(one: Site, two: Site, shape: tuple[int, ...]) -> bool:
    """Whether some channel of each site overlaps several of the other, but not all.

    Equal, disjoint and nested cuts (a scale per head, and one per head and feature) are sound, and
    so are the rows and columns of a grid (an outer product that is flattened).
    """
    if one.index == two.index:
        return False
    first, second = channels(one, shape).ravel(), channels(two, shape).ravel()
    both = (first >= 0) & (second >= 0)
    pairs = np.unique(np.stack([first[both], second[both]]), axis=1)
    counts = [np.unique(side).size for side in pairs]
    return pairs.shape[1] not in (*counts, math.prod(counts))
