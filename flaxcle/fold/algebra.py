"""Per-channel arithmetic as sums of monomials, so that every spelling of a formula looks the same.

    (x - m) * (s * rsqrt(v + eps)) + b   and   x * (s / sqrt(v + eps)) + (b - m * s / sqrt(v + eps))

are the polynomial  x r s - m r s + b  in the atoms x, m, s, b and r = 1 / sqrt(v + eps). The
invariant: an atom carries its layout, so two atoms meet only where their channels line up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from flaxcle.jaxpr.layout import Layout

_MAX_TERMS = 8


class Atom(NamedTuple):
    """An unknown: a `leaf`, the `rsqrt` of `factor * leaf + eps`, or a `data` value.

    `name` is the leaf's path, or the id of the data value; `dtype` is that of the sum with eps.
    """

    kind: str
    name: str | int
    layout: Layout | None = None
    eps: float = 0.0
    dtype: str = ""
    factor: float = 1.0


Monomial = frozenset[tuple[Atom, int]]
Poly = dict[Monomial, float]
ONE: Monomial = frozenset()


def atom(unknown: Atom, exponent: int = 1) -> Poly:
    """The polynomial of one atom."""
    return {frozenset({(unknown, exponent)}): 1.0}


def constant(number: float) -> Poly:
    """The polynomial of a number."""
    return {ONE: number}


def add(one: Poly, two: Poly, sign: float = 1.0) -> Poly | None:
    """`one + sign * two`; `None` when it gets too long to be a norm."""
    out = dict(one)
    for monomial, factor in two.items():
        out[monomial] = out.get(monomial, 0.0) + sign * factor
    out = {monomial: factor for monomial, factor in out.items() if factor}
    return out if len(out) <= _MAX_TERMS else None


def multiply(one: Poly, two: Poly) -> Poly | None:
    """The product; `None` when it gets too long to be a norm."""
    out: Poly | None = {}
    for first, factor in one.items():
        for second, other in two.items():
            out = add(out, {_times(first, second): factor * other}) if out is not None else None
    return out


def _times(one: Monomial, two: Monomial) -> Monomial:
    exponents: Counter[Atom] = Counter()
    for unknown, exponent in (*one, *two):
        exponents[unknown] += exponent
    return frozenset((unknown, n) for unknown, n in exponents.items() if n)


def divide(one: Poly, two: Poly) -> Poly | None:
    """`one / two` for a divisor of one term."""
    if len(two) != 1:
        return None
    (divisor, factor), *_ = two.items()
    return multiply(one, {frozenset((unknown, -n) for unknown, n in divisor): 1 / factor})


def root(inside: Poly, exponent: int, dtype: str) -> Poly | None:
    """`(factor * leaf + eps) ** (-exponent / 2)`: the only root that a norm takes."""
    leaves = [(monomial, factor) for monomial, factor in inside.items() if monomial != ONE]
    if len(leaves) != 1 or leaves[0][1] <= 0.0 or len(leaves[0][0]) != 1:
        return None
    (((unknown, power),), factor), *_ = leaves
    if unknown.kind != "leaf" or power != 1:
        return None
    eps = inside.get(ONE, 0.0)
    return atom(unknown._replace(kind="rsqrt", eps=eps, dtype=dtype, factor=factor), exponent)


def relabel(poly: Poly, move: Callable[[Layout], Layout | None]) -> Poly | None:
    """The polynomial after a view has moved the channels of all its atoms."""
    out: Poly = {}
    for monomial, factor in poly.items():
        moved = []
        for unknown, exponent in monomial:
            layout = move(unknown.layout) if unknown.layout is not None else None
            if layout is None:
                return None
            moved.append((unknown._replace(layout=layout), exponent))
        out[frozenset(moved)] = factor
    return out
