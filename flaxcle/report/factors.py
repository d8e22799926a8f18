"""The scales between two params trees of one function, read off the leaves.

    peak(after) / peak(before) = s ** power        along the axes of a site

A leaf that carries several groups tells of one of them once the others are known, so groups are
found in turn. The invariant: a scale that no leaf shows, such as that of a channel of zeros, is
NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flaxcle.analysis.ranges import QUARTILES
from flaxcle.paths import PyTree, named_leaves, strip_collection
from flaxcle.ranges import rest_of
from flaxcle.spec import Group, Site, Spec
from flaxcle.spec.table import channels, normal_axes
from flaxcle.tables import Table

COLUMNS = ("group", "channels", "min", "lower quartile", "median", "upper quartile", "max", "moves")
Arrays = Mapping[str, np.ndarray]


def scale_table(before: PyTree, after: PyTree, spec: Spec) -> Table:
    """One row for each group: the spread of its scales, and whether it moves or is held."""
    found = scales_between(_arrays(before), _arrays(after), spec)
    rows = []
    for group in spec.groups:
        known = found[group.name][np.isfinite(found[group.name])]
        five = map(float, np.quantile(known, QUARTILES)) if known.size else (None,) * 5
        rows.append((group.name, group.size, *five, "held" if group.held else "yes"))
    return Table(COLUMNS, tuple(rows))


def scales_between(before: Arrays, after: Arrays, spec: Spec) -> dict[str, np.ndarray]:
    """Group name -> its scales, flat."""
    rows: dict[str, list[tuple[Group, Site]]] = {}
    for group in spec.groups:
        for site in group.sites:
            rows.setdefault(strip_collection(site.path), []).append((group, site))
    known: dict[str, np.ndarray] = {}
    waiting = list(spec.groups)
    while waiting:
        ready = {group.name: _told(group, rows, known, before, after) for group in waiting}
        found = {name: scales for name, scales in ready.items() if scales is not None}
        known |= found or {group.name: np.full(group.size, np.nan) for group in waiting}
        waiting = [group for group in waiting if group.name not in known]
    return known


def _told(
    group: Group,
    rows: Mapping[str, Sequence[tuple[Group, Site]]],
    known: Mapping[str, np.ndarray],
    before: Arrays,
    after: Arrays,
) -> np.ndarray | None:
    """The scales that the group's leaves show; None while every leaf waits for other groups."""
    scales, told = np.full(group.size, np.nan), False
    for site in group.sites:
        path = strip_collection(site.path)
        others = [(other, row) for other, row in rows[path] if row is not site]
        if path not in before or any(other.name not in known for other, _ in others):
            continue
        told = True
        new = after[path].astype(np.float64)
        for other, row in others:
            new = new / _spread(known[other.name], row, new.shape) ** float(row.power)
        _fill(scales, site, before[path], new)
    return scales if told else None


def _fill(scales: np.ndarray, site: Site, old: np.ndarray, new: np.ndarray) -> None:
    """Writes what one leaf shows of channels that are not known yet."""
    axes = normal_axes(site, old.ndim)
    rest = rest_of(old.ndim, axes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.max(np.abs(new), rest) / np.max(np.abs(old), rest)
        ratio = ratio.transpose(np.argsort(np.argsort(axes))) ** (1 / float(site.power))
    ids = channels(site, old.shape)
    seen = (ids >= 0) & np.isfinite(ratio) & (ratio > 0)
    seen[seen] &= ~np.isfinite(scales[ids[seen]])
    scales[ids[seen]] = ratio[seen]


def _spread(scales: np.ndarray, site: Site, shape: tuple[int, ...]) -> np.ndarray:
    """The scale of each position of a leaf; 1 where there is none or it is not known."""
    ids = channels(site, shape)
    values = np.where(ids >= 0, scales[ids], 1.0)
    values = np.where(np.isfinite(values), values, 1.0)
    axes = normal_axes(site, len(shape))
    order = np.argsort(axes)
    extent = [shape[k] if k in axes else 1 for k in range(len(shape))]
    return values.transpose(order).reshape(extent)


def _arrays(params: PyTree) -> dict[str, np.ndarray]:
    """The leaves by name, without collections: exposing clips adds one in front."""
    return {strip_collection(path): np.asarray(leaf) for path, leaf in named_leaves(params).items()}
