"""What a rule may do besides moving terms: state equations, and make fresh symbols.

The invariant: every equation carries its `Why` (the operation that demands it), and dropping
equations is never needed to be sound: a rule that does not know pins what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from flaxcle.jaxpr import Graph, Op, Value
from flaxcle.rules import box, scale
from flaxcle.rules.box import Axes, Irregular, Shape
from flaxcle.rules.cells import rows_of
from flaxcle.rules.constants import Constants
from flaxcle.rules.scale import PLAIN, WILD, Gauge, Power, Scale, Term, Terms


class Why(NamedTuple):
    """The operation behind an equation, and the kind of demand that it makes."""

    kind: str
    op: Op | None = None
    detail: str = ""


PASSING = ("equal", "branch")


class Equation(NamedTuple):
    """Rows `sum_k powers_k * symbol[starts_k + steps_k * t] = 0`, all for the same reason."""

    powers: tuple[Power, ...]
    starts: np.ndarray
    steps: tuple[int, ...]
    length: int
    why: int


@dataclass
class Context:
    """The state of one analysis.

    Attributes:
        run: interprets a nested graph on scales of its inputs.
        step: interprets one operation on scales of its operands.
        symbols: number of symbols handed out.
        equations, whys: all that was stated so far, in program order.
        unknown: operations without a rule that met a scaled operand.
        spent: gauges that are used up.
        zeros: terms of elements that are zero, whose symbols stand for any scale.
        read: terms of values that an operation did more with than to pass them on.
        rehearsals: how many rehearsals are under way.
    """

    run: Callable[[Graph, Sequence[Scale]], list[Scale]]
    step: Callable[[Op, list[Scale]], Sequence[Scale]]
    constants: Constants
    symbols: int = 0
    equations: list[Equation] = field(default_factory=list)
    whys: list[Why] = field(default_factory=list)
    unknown: list[Op] = field(default_factory=list)
    spent: set[Gauge] = field(default_factory=set)
    zeros: list[Term] = field(default_factory=list)
    read: list[Term] = field(default_factory=list)
    rehearsals: int = 0

    def fresh(self, shape: Shape, axes: Sequence[int]) -> Term:
        """New symbols that vary along the chosen axes."""
        base = self.symbols
        for_axes = [axis for axis in axes if shape[axis] > 1]
        self.symbols += int(np.prod([shape[axis] for axis in for_axes], dtype=np.int64))
        return Term(1, base, box.row_major(shape, for_axes))

    def zero(self, terms: Terms, shape: Shape, why: Why) -> None:
        """States that the terms add up to zero at every position."""
        terms = scale.add(terms)
        if not terms or 0 in shape:
            return
        if why.kind not in PASSING:
            self.read += terms
        number = len(self.whys)
        self.whys.append(why)
        try:
            cells = rows_of(tuple(term.axes for term in terms), shape)
        except Irregular:
            if len(terms) == 1:
                raise
            for term in terms:
                self.zero((term,), shape, why)
            return
        for fresh, rows in cells:
            bases = np.array([*(term.base for term in terms), *self._scalars(fresh)], np.int64)
            powers = (*(term.power for term in terms), *(1,) * fresh)
            for part in rows:
                picked = list(part.boxes)
                signed = tuple(powers[i] * s for i, s in zip(picked, part.signs, strict=True))
                starts = part.starts + bases[picked]
                self.equations.append(Equation(signed, starts, part.steps, part.length, number))

    def _scalars(self, count: int) -> range:
        first = self.symbols
        self.symbols += count
        return range(first, first + count)

    def equate(self, one: Terms, two: Terms, shape: Shape, why: Why) -> None:
        """States that two values have the same scale everywhere."""
        if one != two:
            self.zero((*one, *scale.times(-1, two)), shape, why)

    def pin(self, value: Scale, shape: Shape, why: Why) -> None:
        """States that a value is not scaled."""
        self.zero(value.terms, shape, why)

    def constant_along(
        self, terms: Terms, shape: Shape, axes: Sequence[int], why: Why, gauge: Gauge | None = None
    ) -> Terms:
        """States that a value's scale is the same along the axes; returns it without them.

        The part that varies along the axes equals a fresh scale of the other axes, or nothing
        where a gauge still allows that choice.
        """
        moving = [t for t in terms if any(scale.depends(t, axis, shape) for axis in axes)]
        still = tuple(t for t in terms if t not in moving)
        if moving:
            others = [
                axis
                for axis in range(len(shape))
                if axis not in axes and any(scale.depends(t, axis, shape) for t in moving)
            ]
            if gauge is not None and gauge not in self.spent:
                self.spent.add(gauge)
                self.zero(tuple(moving), shape, why)
            else:
                common = self.fresh(shape, others)
                self.equate(tuple(moving), (common,), shape, why)
                still = (*still, common)
        return scale.drop(still, axes)

    def same(self, values: Sequence[Scale], shape: Shape, why: Why) -> Scale:
        """States that values have one scale; returns it."""
        tame = [value for value in values if not value.wild]
        if not tame:
            return WILD
        chosen = min(tame, key=lambda value: len(value.terms))
        for value in tame:
            if value is not chosen:
                self.equate(value.terms, chosen.terms, shape, why)
            if not chosen.terms:
                self.read += value.terms
        return Scale(chosen.terms)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Takes back every equation stated inside."""
        equations, whys, unknown = len(self.equations), len(self.whys), len(self.unknown)
        spent = set(self.spent)
        self.rehearsals += 1
        yield
        self.rehearsals -= 1
        del self.equations[equations:], self.whys[whys:], self.unknown[unknown:]
        self.spent = spent


Rule = Callable[[Op, Sequence[Scale], Context], Sequence[Scale]]


def shape_of(value: Value) -> Shape:
    """The shape as plain ints."""
    return tuple(int(n) for n in value.shape)


def literal(value: Value, context: Context) -> Scale:
    """The scale of a literal or a closure's array: wild when it is zero or infinite everywhere."""
    return WILD if context.constants.is_wild(value) else PLAIN


def whole_axes(shape: Shape) -> Axes:
    """A box over the whole array that varies nowhere."""
    return tuple(box.whole(size) for size in shape)


def as_number(value: Any) -> float | None:
    """A constant array as one number, when all its elements agree."""
    if value is None:
        return None
    flat = np.asarray(value).ravel()
    return float(flat[0]) if flat.size and (flat == flat[0]).all() else None
