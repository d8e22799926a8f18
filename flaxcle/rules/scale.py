"""The scale of a value: a sum of terms in the log domain, position by position.

    log scale(value)[p] = sum_k power_k * symbol_k[p]

A term is a box of symbols (see `box`) with a rational power; positions that no term reaches are
not scaled. A value that is zero or infinite everywhere is `wild`: any scale suits it. The
invariant: operations here move terms about; only `Context` may state equations between symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple

from flaxcle.rules import box
from flaxcle.rules.box import Along, Axes, Piece, Shape

Power = int | Fraction


class Term(NamedTuple):
    """`power` times the symbols `base + ...` of a box."""

    power: Power
    base: int
    axes: Axes


Terms = tuple[Term, ...]


@dataclass(frozen=True)
class Gauge:
    """A leaf, or a slice of one, of which only the product of two factors is seen.

    Its in-symbols and out-symbols can be moved against each other by a constant without changing
    the leaf; the first contraction may use that freedom once.
    """

    leaf: str
    slices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scale:
    """What is known about the scale of one value."""

    terms: Terms = ()
    wild: bool = False
    gauge: Gauge | None = None

    @property
    def plain(self) -> bool:
        """Not scaled at all, and not compatible with anything else."""
        return not self.terms and not self.wild

    def keep(self, terms: Terms) -> Scale:
        """The same value in another layout."""
        return replace(self, terms=terms)


PLAIN = Scale()
WILD = Scale(wild=True)


def move(terms: Terms, layout: Callable[[Axes], Sequence[Piece]]) -> Terms:
    """Maps every box to the boxes of another layout, and joins boxes that continue each other."""
    pieces = [
        Term(term.power, term.base + shift, axes)
        for term in terms
        for shift, axes in layout(term.axes)
    ]
    return tuple(pieces) if len(pieces) == len(terms) else fuse(pieces)


def add(*parts: Iterable[Term]) -> Terms:
    """The sum, with equal boxes counted together."""
    powers: dict[tuple[int, Axes], Power] = {}
    for terms in parts:
        for power, base, axes in terms:
            powers[base, axes] = powers.get((base, axes), 0) + power
    return tuple(Term(power, *key) for key, power in powers.items() if power)


def times(power: Power, terms: Terms) -> Terms:
    """The terms of a power of the value."""
    if power == 1:
        return terms
    return tuple(Term(term.power * power, term.base, term.axes) for term in terms if power)


def depends(term: Term, axis: int, shape: Shape) -> bool:
    """Whether the term differs along the axis."""
    return box.varies(term.axes[axis], shape[axis])


def broadcast(terms: Terms, shape: Shape, target: Shape, dims: Sequence[int]) -> Terms:
    """Axis `i` becomes axis `dims[i]`; the term does not vary along new or stretched axes."""
    places = {axis: i for i, axis in enumerate(dims)}

    def layout(axes: Axes) -> Sequence[Piece]:
        out = []
        for axis, size in enumerate(target):
            i = places.get(axis)
            stretched = i is None or (shape[i] == 1 and size != 1)
            out.append(box.whole(size) if stretched or i is None else axes[i])
        return ((0, tuple(out)),)

    return move(terms, layout)


def reshape(terms: Terms, old: Shape, new: Shape) -> Terms:
    """Same order of elements, new shape."""
    return terms if old == new else move(terms, lambda axes: box.reshape(axes, old, new))


def transpose(terms: Terms, order: Sequence[int]) -> Terms:
    """Axis `i` of the result is axis `order[i]`."""
    return move(terms, lambda axes: ((0, tuple(axes[i] for i in order)),))


def window(terms: Terms, axis: int, start: int, stop: int, stride: int = 1) -> Terms:
    """Positions start, start + stride, ... of an axis."""

    def layout(axes: Axes) -> Sequence[Piece]:
        parts = [
            (shift + more, part)
            for shift, near in box.window(axes[axis], start, stop)
            for more, part in box.every(near, stride)
        ]
        return box.on_axis(axes, axis, parts)

    return move(terms, layout)


def drop(terms: Terms, axes: Sequence[int]) -> Terms:
    """Removes axes along which no term varies."""
    gone = set(axes)
    return move(terms, lambda a: ((0, tuple(x for i, x in enumerate(a) if i not in gone)),))


def insert(terms: Terms, axis: int, size: int) -> Terms:
    """A new axis along which the terms do not vary."""
    return move(terms, lambda axes: ((0, (*axes[:axis], box.whole(size), *axes[axis:])),))


def place(terms: Terms, axis: int, offset: int, dilation: int = 1) -> Terms:
    """Moves the positions of an axis up, inside a larger axis."""
    return move(
        terms,
        lambda axes: box.on_axis(axes, axis, [(0, box.shifted(axes[axis], offset, dilation))]),
    )


def fuse(terms: Iterable[Term]) -> Terms:
    """Joins terms whose boxes continue each other along one axis; equal ones are added."""
    out: list[Term] = []
    for term in add(terms):
        joined = _join(out[-1], term) if out else None
        while joined is not None:
            out.pop()
            term = joined
            joined = _join(out[-1], term) if out else None
        out.append(term)
    return tuple(out)


def _join(one: Term, two: Term) -> Term | None:
    if one.power != two.power or len(one.axes) != len(two.axes):
        return None
    differ = [i for i, (a, b) in enumerate(zip(one.axes, two.axes, strict=True)) if a != b]
    if len(differ) != 1:
        return None
    axis = differ[0]
    along = _continued(one.axes[axis], two.axes[axis], two.base - one.base)
    if along is None:
        return None
    return Term(one.power, one.base, (*one.axes[:axis], along, *one.axes[axis + 1 :]))


def _continued(one: Along, two: Along, shift: int) -> Along | None:
    """One range of an index continued by the next; other indices must agree."""
    gap = two.offset - one.offset
    if one.dims == two.dims:
        return (
            box.normal(one.offset, (*one.dims, box.Dim(2, gap, shift))) if gap > one.reach else None
        )
    first = one.dims[0] if one.dims else None
    if first is None or gap != first.length * first.place or shift != first.length * first.step:
        return None
    rest = one.dims[1:]
    if two.dims == rest:
        more = 1
    elif two.dims and two.dims[1:] == rest and two.dims[0][1:] == first[1:]:
        more = two.dims[0].length
    else:
        return None
    return box.normal(one.offset, (box.Dim(first.length + more, *first[1:]), *rest))
