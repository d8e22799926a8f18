"""Several boxes over one array: cells in which each box is affine, and the rows of an equation.

To say that the symbols of some boxes add up to zero at every position of an array, the array is
cut into cells in which each box either is absent or advances evenly. A cell gives rows

    sum_k power_k * symbol[start_k + step_k * t] = 0        0 <= t < length

with step 0 or 1. The invariant: the number of rows depends on the geometry (windows, heads,
groups), not on the sizes of the axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flaxcle.rules.box import LIMIT, Along, Axes, Irregular, Part, Shape, fixed, split

MAX_ROWS = 1 << 20
Digits = tuple[int, ...]
Interval = tuple[int, int, int]


class Item(NamedTuple):
    """A box, or a part of one: an interval (start, stop, step) for every digit of a position."""

    box: int
    shift: int
    intervals: tuple[Interval, ...]


class Rows(NamedTuple):
    """Rows of one pattern: box numbers, their symbols' distances from base, steps, length.

    A box number past the last box stands for a fresh scalar, common to the `Rows` of one cell.
    """

    boxes: tuple[int, ...]
    signs: tuple[int, ...]
    starts: np.ndarray
    steps: tuple[int, ...]
    length: int


@lru_cache(maxsize=1 << 14)
def rows_of(boxes: tuple[Axes, ...], shape: Shape) -> tuple[tuple[int, tuple[Rows, ...]], ...]:
    """For each cell: how many fresh scalars it needs, and its rows."""
    digits = [_radices(boxes, axis) for axis in range(len(shape))]
    items = [item for number, axes in enumerate(boxes) for item in _items(number, axes, digits)]
    tops = tuple(
        (0, top) for chain, size in zip(digits, shape, strict=True) for top in _extents(chain, size)
    )
    return tuple(_equation(cell, active, len(boxes)) for cell, active in _cells(tops, items))


def _radices(boxes: tuple[Axes, ...], axis: int) -> Digits:
    """Places that divide each other, finest first, by which all boxes can be cut."""
    chain = [1]
    for place in sorted({dim.place for axes in boxes for dim in axes[axis].dims} - {1}):
        if place % chain[-1] == 0:
            chain.append(place)
    return tuple(chain)


def _extents(chain: Digits, size: int) -> list[int]:
    inner = [high // low for low, high in pairwise(chain)]
    return [*inner, -(-size // chain[-1])]


def _items(number: int, axes: Axes, digits: list[Digits]) -> Iterator[Item]:
    found: list[tuple[int, tuple[Interval, ...]]] = [(0, ())]
    for along, chain in zip(axes, digits, strict=True):
        found = [
            (shift + more, intervals + inner)
            for shift, intervals in found
            for more, inner in _in_digits(along, chain)
        ]
    return (Item(number, shift, intervals) for shift, intervals in found)


def _in_digits(along: Along, chain: Digits) -> list[tuple[int, tuple[Interval, ...]]]:
    """The positions of a box on one axis, digit by digit."""
    parts: list[tuple[int, Along, tuple[Interval, ...]]] = [
        (shift, part, ()) for shift, part in _regular(along, chain)
    ]
    for low, high in pairwise(chain):
        parts = [
            (shift + more, outer, (*done, _interval(inner)))
            for shift, part, done in parts
            for more, outer, inner in split(part, high // low)
        ]
    return [(shift, (*done, _interval(part))) for shift, part, done in parts]


def _regular(along: Along, chain: Digits) -> list[Part]:
    """Takes indices whose place is no digit one by one."""
    parts: list[Part] = [(0, along)]
    for dim in along.dims:
        if dim.place in chain:
            continue
        if dim.length * len(parts) > LIMIT:
            raise Irregular
        parts = [
            (shift + more, single)
            for shift, part in parts
            for index in range(dim.length)
            for more, single in [fixed(part, dim, index)]
        ]
    return parts


def _interval(along: Along) -> Interval:
    if not along.dims:
        return along.offset, along.offset + 1, 0
    (dim,) = along.dims
    return along.offset, along.offset + dim.length, dim.step


def _cells(
    box: tuple[tuple[int, int], ...], items: list[Item]
) -> Iterator[tuple[tuple[tuple[int, int], ...], list[Item]]]:
    """Cuts a region until every box covers all of it or nothing."""
    if not items:
        return
    for digit, (low, high) in enumerate(box):
        for item in items:
            start, stop, _ = item.intervals[digit]
            cut = start if low < start < high else stop
            if low < cut < high:
                for part in ((low, cut), (cut, high)):
                    inside = [i for i in items if _meets(i.intervals[digit], part)]
                    yield from _cells((*box[:digit], part, *box[digit + 1 :]), inside)
                return
    yield box, items


def _meets(interval: Interval, part: tuple[int, int]) -> bool:
    return interval[0] < part[1] and part[0] < interval[1]


def _equation(
    cell: tuple[tuple[int, int], ...], items: list[Item], boxes: int
) -> tuple[int, tuple[Rows, ...]]:
    starts = [
        item.shift
        + sum(
            step * (low - first)
            for (low, _), (first, _, step) in zip(cell, item.intervals, strict=True)
        )
        for item in items
    ]
    dims = [
        (high - low, tuple(item.intervals[digit][2] for item in items))
        for digit, (low, high) in enumerate(cell)
    ]
    dims = _merged([(size, steps) for size, steps in dims if size > 1 and any(steps)])
    parts = _parts(dims, len(items))
    if len(parts) < 2:
        return 0, (_rows(items, starts, dims, None),)
    out = [
        _rows([items[i] for i in members], [starts[i] for i in members], inner, boxes + number)
        for number, (inner, members) in enumerate(parts)
    ]
    still = [i for i in range(len(items)) if not any(steps[i] for _, steps in dims)]
    fresh = tuple(range(boxes, boxes + len(parts)))
    balance = Rows(
        (*fresh, *(items[i].box for i in still)),
        (1,) * (len(fresh) + len(still)),
        np.array([[0] * len(fresh) + [starts[i] for i in still]]),
        (0,) * (len(fresh) + len(still)),
        1,
    )
    return len(parts), (*out, balance)


Steps = tuple[int, tuple[int, ...]]


def _merged(dims: list[Steps]) -> list[Steps]:
    """Joins two indices where for every box one continues the other."""
    for i, (outer, far) in enumerate(dims):
        for j, (inner, near) in enumerate(dims):
            if i != j and all(f == inner * n for f, n in zip(far, near, strict=True)):
                rest = [dim for k, dim in enumerate(dims) if k not in (i, j)]
                return _merged([*rest, (outer * inner, near)])
    return dims


def _parts(dims: list[Steps], count: int) -> list[tuple[list[Steps], list[int]]]:
    """Sums of functions of different indices are constant one by one: separates the indices."""
    parts: list[tuple[list[Steps], set[int]]] = []
    for dim in dims:
        members = {i for i in range(count) if dim[1][i]}
        meeting = [part for part in parts if part[1] & members]
        parts = [part for part in parts if part not in meeting]
        joined = [dim, *(d for part in meeting for d in part[0])]
        parts.append((joined, members.union(*(part[1] for part in meeting))))
    return [
        (
            [(size, tuple(steps[i] for i in sorted(members))) for size, steps in inner],
            sorted(members),
        )
        for inner, members in parts
    ]


def _rows(items: list[Item], starts: list[int], dims: list[Steps], scalar: int | None) -> Rows:
    """Rows along the longest index that advances by 0 or 1; the other indices are listed."""
    runs = [
        dim for dim in dims if all(s in (0, 1) for s in dim[1]) or all(s in (0, -1) for s in dim[1])
    ]
    run = max(runs, default=(1, (0,) * len(items)))
    grid = np.array([starts], np.int64)
    others = [dim for dim in dims if dim is not run]
    if math.prod(size for size, _ in others) > MAX_ROWS:
        raise Irregular
    for size, steps in others:
        moves = np.arange(size)[:, None] * np.array(steps)
        grid = (grid[:, None, :] + moves[None]).reshape(-1, len(items))
    length, steps = run
    if any(s < 0 for s in steps):
        grid = grid + (length - 1) * np.array(steps)
        steps = tuple(-s for s in steps)
    boxes, signs = tuple(item.box for item in items), (1,) * len(items)
    if scalar is not None:
        boxes, signs, steps = (*boxes, scalar), (*signs, -1), (*steps, 0)
        grid = np.concatenate([grid, np.zeros((len(grid), 1), np.int64)], 1)
    return Rows(boxes, signs, grid, steps, length)
