"""Leaf scales that a spec declares: one symbol for every channel of every group.

An index is a list of runs, and a run is a box: `tile` and `repeat` stand still, `step` advances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from flaxcle.jaxpr import Program
from flaxcle.rules import box, scale
from flaxcle.rules.box import Shape
from flaxcle.rules.context import Context
from flaxcle.rules.scale import PLAIN, Scale, Term, Terms
from flaxcle.spec import Group, Index, Run, Site, Spec


class Owner(NamedTuple):
    """The symbols of a group."""

    group: Group
    base: int


def declared_scales(
    program: Program, spec: Spec, context: Context
) -> tuple[dict[str, Scale], list[Owner]]:
    """The scale of every leaf when all groups of the spec move, and whose the symbols are."""
    scales: dict[str, Scale] = dict.fromkeys(program.params, PLAIN)
    owners = []
    for group in spec.groups:
        owners.append(Owner(group, context.symbols))
        for site in group.sites:
            shape = tuple(int(n) for n in program.params[site.path].shape)
            terms = scale.add(scales[site.path].terms, _terms(site, shape, context.symbols))
            scales[site.path] = Scale(terms)
        context.symbols += group.size
    return scales, owners


def _terms(site: Site, shape: Shape, base: int) -> Terms:
    axes = [axis % len(shape) for axis in site.axes]
    extent = tuple(shape[axis] for axis in axes)
    flat = _flat(site.index or Index(extent, (Run(0, math.prod(extent)),)), base)
    opened = scale.reshape(flat, (math.prod(extent),), extent)
    order = sorted(range(len(axes)), key=lambda i: axes[i])
    placed = scale.broadcast(
        scale.transpose(opened, order), tuple(extent[i] for i in order), shape, sorted(axes)
    )
    power = site.power
    return scale.times(power.numerator if power.denominator == 1 else power, placed)


def _flat(index: Index, base: int) -> Terms:
    """The runs side by side on one axis."""
    out, at = [], 0
    for run in index.runs:
        if run.start >= 0:
            dims = (
                box.Dim(run.tile, run.length * run.repeat, 0),
                box.Dim(run.length, run.repeat, run.step),
                box.Dim(run.repeat, 1, 0),
            )
            out.append(Term(1, base + run.start, (box.normal(at, dims),)))
        at += run.size
    return tuple(out)


def owner_of(symbol: int, owners: Sequence[Owner]) -> tuple[Group, int] | None:
    """The group of a declared symbol and its channel; `None` for a symbol of the analysis."""
    for group, base in owners:
        if base <= symbol < base + group.size:
            return group, symbol - base
    return None
