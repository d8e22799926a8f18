"""What of a spec moves: leaves, the links between groups and leaves, and the terms of each balance.

A *link* is a row of the central table that multiplies a leaf while the solver runs; a *term* is a
range that takes part in the balance of a group. The input of a calibrated weight is a leaf like
any other: a scale that divides the weight multiplies its input. The invariant: everything here is
static, read from the spec and the shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from flaxcle.ranges import Fold, rest_of
from flaxcle.spec.table import Group, Site, Spec, channels, normal_axes

Axes = tuple[int, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Link:
    """`core *= 2 ** (power * x[ids])` along `axes`.

    Attributes:
        leaf: path of the leaf.
        group: number of the group in the spec.
        site: the row of the table.
        axes: axes of the leaf's core, ascending.
        ids: channel of the group for each position along `axes`, -1 for none.
    """

    leaf: str
    group: int
    site: Site
    axes: Axes
    ids: np.ndarray

    @property
    def power(self) -> float:
        """Exponent of the scale."""
        return float(self.site.power)

    @property
    def repeats(self) -> int:
        """At how many positions a channel stands at most."""
        return int(np.bincount(self.ids[self.ids >= 0], minlength=1).max())


@dataclass(frozen=True, eq=False)
class Leaf:
    """A leaf that moves: the axes that stay, how they fold to `shape`, and its links."""

    path: str
    axes: Axes
    folds: tuple[Fold, ...]
    shape: Shape
    links: tuple[Link, ...]

    def others(self, link: Link) -> tuple[Link, ...]:
        """The links of this leaf but one."""
        return tuple(other for other in self.links if other is not link)

    def rest(self, link: Link) -> Axes:
        """The axes of the core that a link does not read."""
        return rest_of(len(self.shape), link.axes)

    def inner(self, link: Link) -> tuple[Link, ...]:
        """The other links that move entries of one position along a link's axes apart."""
        return tuple(other for other in self.others(link) if not set(other.axes) <= set(link.axes))

    def outer(self, link: Link) -> tuple[Link, ...]:
        """The other links, which scale all that stands at a position of a link's axes alike."""
        return tuple(other for other in self.others(link) if set(other.axes) <= set(link.axes))

    def candidates(self, link: Link) -> int:
        """Among how many entries the other scales decide which is a channel's largest."""
        if len(self.links) == 1 or (link.repeats == 1 and not self.inner(link)):
            return 1
        return link.repeats * math.prod(self.shape[axis] for axis in self.rest(link))


@dataclass(frozen=True, eq=False)
class Term:
    """One range in the balance of a group: the largest over `links`.

    Several links only where vectors that nothing else moves stand in for a missing kernel. Where
    `joined`, the largest range of a side counts, not the mean of its logarithms.
    """

    links: tuple[Link, ...]
    joined: bool = False

    @property
    def power(self) -> float:
        """Exponent of the group's scale in this range."""
        return self.links[0].power


@dataclass(frozen=True, eq=False)
class Plan:
    """The moving part of a spec.

    Attributes:
        spec: all groups.
        moving: the groups that move, alone.
        leaves: their leaves by path.
        terms: number of each moving group in `spec` -> its balance.
        bare: the groups that would move if they had a range on both sides.
    """

    spec: Spec
    moving: Spec
    leaves: Mapping[str, Leaf]
    terms: Mapping[int, tuple[Term, ...]]
    bare: frozenset[int]

    @property
    def links(self) -> tuple[Link, ...]:
        """The links of all leaves."""
        return tuple(link for leaf in self.leaves.values() for link in leaf.links)


@lru_cache(maxsize=256)
def make_plan(
    spec: Spec,
    shapes: tuple[tuple[str, Shape], ...],
    inputs: tuple[tuple[str, Axes], ...] = (),
    weights: bool = True,
) -> Plan:
    """The plan for a spec and the shapes of its leaves and their inputs, which must fit.

    Args:
        spec: all groups.
        shapes: of each leaf, and of the input (`input_of`) of each calibrated one.
        inputs: the axes of each calibrated leaf that its input runs along.
        weights: whether groups without a calibrated consumer move.
    """
    shape_of = dict(shapes)
    free = {number: group for number, group in enumerate(spec.groups) if not group.held}
    read = {n: input_sites(group, dict(inputs), shape_of) for n, group in free.items()}
    sites = {n: balanced_sites(group, read[n], shape_of) for n, group in free.items()}
    moving = [number for number in free if sites[number] and (weights or read[number])]
    rows: dict[str, list[tuple[int, Site]]] = {}
    for number in moving:
        for site in (*free[number].sites, *read[number]):
            rows.setdefault(site.path, []).append((number, site))
    leaves = {path: _leaf(path, shape_of[path], found) for path, found in rows.items()}
    terms = {n: _terms(n, sites[n], leaves, joined=bool(read[n])) for n in moving}
    bare = frozenset(number for number in free if not sites[number])
    return Plan(spec, Spec(tuple(free[number] for number in moving)), leaves, terms, bare)


def input_of(path: str) -> str:
    """The name under which the input of a weight is a leaf."""
    return f"{path} (input)"


def input_sites(
    group: Group, inputs: Mapping[str, Axes], shapes: Mapping[str, Shape]
) -> tuple[Site, ...]:
    """The rows of the calibrated inputs that a group's scale multiplies."""
    found = []
    for site in group.consumers:
        kept = inputs.get(site.path, ())
        axes = normal_axes(site, len(shapes[site.path]))
        if kept and set(axes) <= set(kept):
            place = tuple(kept.index(axis) for axis in axes)
            found.append(Site(input_of(site.path), place, -site.power, site.index))
    return tuple(found)


def balanced_sites(
    group: Group, inputs: Sequence[Site], shapes: Mapping[str, Shape]
) -> list[tuple[Site, ...]]:
    """The sites whose ranges a group balances, joined to terms; none when a side has no range.

    These are the kernels and embeddings, for their range sets the step of a quantizer. On a side
    without one (a norm) the vectors stand in for the range of the activation that they bound.
    Where that range is known, it counts, and the producers don't.
    """
    made = [(site,) for site in inputs] or _carriers(group.producers, shapes)
    read = _carriers(group.consumers, shapes)
    return [*made, *read] if made and read else []


def _carriers(side: tuple[Site, ...], shapes: Mapping[str, Shape]) -> list[tuple[Site, ...]]:
    kernels = [(site,) for site in side if not _is_vector(site, shapes[site.path])]
    if kernels or not side:
        return kernels
    # The 1x1 depthwise kernel among biases is told from them by its rank.
    rank = max(len(shapes[site.path]) for site in side)
    vectors = [site for site in side if len(shapes[site.path]) == rank]
    powers = {site.power for site in vectors}
    return [tuple(site for site in vectors if site.power == power) for power in sorted(powers)]


def _is_vector(site: Site, shape: Shape) -> bool:
    """Whether the leaf has one number for each position of the site: a bias, a norm's scale.

    A bias of shape (1, n) is told from a kernel of that shape by its side: biases are not read.
    """
    if site.power < 0:
        return len(shape) == len(site.axes)
    return math.prod(shape) == math.prod(shape[axis] for axis in site.axes)


def _leaf(path: str, shape: Shape, rows: list[tuple[int, Site]]) -> Leaf:
    kept = sorted({axis for _, site in rows for axis in normal_axes(site, len(shape))})
    links = []
    for number, site in rows:
        axes = normal_axes(site, len(shape))
        ids = channels(site, shape).transpose(np.argsort(axes))
        place = tuple(kept.index(axis) for axis in sorted(axes))
        links.append(Link(path, number, site, place, ids))
    core = tuple(shape[axis] for axis in kept)
    return _fold_leaf(Leaf(path, tuple(kept), (), core, tuple(links)))


def _fold_leaf(leaf: Leaf) -> Leaf:
    """Reduces axes that one link alone reads, and that repeat its channels, to the channels."""
    folds = []
    for link in leaf.links:
        shared = {axis for other in leaf.others(link) for axis in other.axes}
        fold = _fold(link)
        if fold and not shared & set(link.axes):
            folds.append(fold)
    for fold in sorted(folds, reverse=True):
        leaf = _folded(leaf, fold)
    return leaf


def _fold(link: Link) -> Fold | None:
    """How neighbouring axes hold whole channels, tiled and repeated; none when they don't."""
    flat = link.ids.ravel()
    size = int(flat.max()) + 1
    start, stop = link.axes[0], link.axes[-1] + 1
    if stop - start != len(link.axes) or size < 1 or flat.size == size or flat.size % size:
        return None
    repeat = int(np.argmax(flat != flat[0])) or flat.size
    tile = flat.size // (size * repeat)
    regular = np.tile(np.repeat(np.arange(size), repeat), tile)
    return Fold(start, stop, tile, size, repeat) if np.array_equal(flat, regular) else None


def _folded(leaf: Leaf, fold: Fold) -> Leaf:
    gone = fold.stop - fold.start - 1

    def renumbered(link: Link) -> Link:
        if fold.start in link.axes:
            return replace(link, axes=(fold.start,), ids=np.arange(fold.channels))
        axes = tuple(axis - gone if axis >= fold.stop else axis for axis in link.axes)
        return replace(link, axes=axes)

    shape = (*leaf.shape[: fold.start], fold.channels, *leaf.shape[fold.stop :])
    links = tuple(renumbered(link) for link in leaf.links)
    return replace(leaf, folds=(fold, *leaf.folds), shape=shape, links=links)


def _terms(
    number: int, sites: list[tuple[Site, ...]], leaves: Mapping[str, Leaf], *, joined: bool
) -> tuple[Term, ...]:
    terms: list[Term] = []
    for together in sites:
        links = tuple(_link_of(number, site, leaves[site.path]) for site in together)
        alone = all(len(leaves[link.leaf].links) == 1 for link in links)
        parts = [links] if alone else [(link,) for link in links]
        terms += [Term(part, joined) for part in parts]
    return tuple(terms)


def _link_of(number: int, site: Site, leaf: Leaf) -> Link:
    return next(link for link in leaf.links if link.group == number and link.site is site)
