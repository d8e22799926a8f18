"""Boxes: which symbol each position of an array carries, without listing positions.

    position on axis a = offset_a + sum_j place_j * i_j        0 <= i_j < length_j
    symbol             = base     + sum_j step_j  * i_j

A box has one `Along` per axis; positions that it does not reach carry no symbol of it. Layout
operations (reshape, slice, pad, transpose, ...) map a box to a few boxes, at a cost that does not
depend on the size of the axes. The invariant: within an axis no two index tuples reach the same
position, dims stand in order of falling place, and an axis of size one has no dims.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

LIMIT = 4096
Shape = tuple[int, ...]


class Irregular(Exception):
    """The positions follow no pattern that a few boxes can describe."""


class Dim(NamedTuple):
    """One index of a box: how far a step goes in positions and in symbols."""

    length: int
    place: int
    step: int


class Along(NamedTuple):
    """The positions of a box on one axis."""

    offset: int
    dims: tuple[Dim, ...]

    @property
    def reach(self) -> int:
        """Distance from the first to the last position."""
        return sum((dim.length - 1) * dim.place for dim in self.dims)


Axes = tuple[Along, ...]
Part = tuple[int, Along]
Piece = tuple[int, Axes]


def whole(size: int, step: int = 0) -> Along:
    """All positions of an axis; the symbol advances by `step`."""
    return normal(0, (Dim(size, 1, step),))


def row_major(shape: Sequence[int], axes: Sequence[int]) -> Axes:
    """Symbols numbered in C order over the chosen axes, the same along the others."""
    steps, step = {}, 1
    for axis in reversed(axes):
        steps[axis] = step
        step *= shape[axis]
    return tuple(whole(size, steps.get(axis, 0)) for axis, size in enumerate(shape))


def varies(along: Along, size: int) -> bool:
    """Whether positions on the axis differ: in their symbol, or in having one."""
    return along != whole(size)


@lru_cache(maxsize=1 << 16)
def normal(offset: int, dims: tuple[Dim, ...]) -> Along:
    """Sorts the dims, drops those of length one and merges neighbours that continue each other."""
    out: list[Dim] = []
    for dim in sorted((d for d in dims if d.length > 1), key=lambda d: -d.place):
        last = out[-1] if out else None
        if last and last.place == dim.length * dim.place and last.step == dim.length * dim.step:
            out[-1] = Dim(last.length * dim.length, dim.place, dim.step)
        else:
            out.append(dim)
    return Along(offset, tuple(out))


def _without(along: Along, dim: Dim) -> tuple[Dim, ...]:
    return tuple(d for d in along.dims if d != dim)


def fixed(along: Along, dim: Dim, index: int) -> Part:
    """The part of the box where one index has this value."""
    return index * dim.step, Along(along.offset + index * dim.place, _without(along, dim))


def _ranged(along: Along, dim: Dim, start: int, stop: int) -> Part:
    """The part of the box where one index lies in a range."""
    if stop - start == 1:
        return fixed(along, dim, start)
    rest = (*_without(along, dim), Dim(stop - start, dim.place, dim.step))
    return start * dim.step, Along(along.offset + start * dim.place, rest)


@lru_cache(maxsize=1 << 16)
def window(along: Along, start: int, stop: int) -> tuple[Part, ...]:
    """The positions in `[start, stop)`, counted from `start`."""
    return tuple(
        (shift, normal(part.offset - start, part.dims))
        for shift, part in _window(along, start, stop)
    )


def _window(along: Along, start: int, stop: int) -> Iterator[Part]:
    first, last = along.offset, along.offset + along.reach
    if last < start or first >= stop:
        return
    if first >= start and last < stop:
        yield 0, along
        return
    dim = max(along.dims, key=lambda d: d.place)
    spread = along.reach - (dim.length - 1) * dim.place
    low = max(0, -(-(start - first) // dim.place))
    high = min(dim.length, (stop - 1 - spread - first) // dim.place + 1)
    if low < high:
        yield _ranged(along, dim, low, high)
    for index in sorted(i for i in {low - 1, high} if 0 <= i < dim.length and not low <= i < high):
        shift, part = fixed(along, dim, index)
        yield from ((shift + more, inner) for more, inner in _window(part, start, stop))


@lru_cache(maxsize=1 << 16)
def split(along: Along, size: int) -> tuple[tuple[int, Along, Along], ...]:
    """Cuts an axis into an outer one and an inner one of this size: (shift, outer, inner)."""
    return tuple(
        (shift, normal(*outer), normal(*inner)) for shift, outer, inner in _split(along, size)
    )


def _split(along: Along, size: int) -> Iterator[tuple[int, Along, Along]]:
    low = tuple(dim for dim in along.dims if dim.place % size)
    inner = Along(along.offset % size, low)
    if inner.offset + inner.reach < size:
        high = tuple(Dim(d.length, d.place // size, d.step) for d in along.dims if d not in low)
        yield 0, Along(along.offset // size, high), inner
        return
    dim = max(low, key=lambda d: d.place)
    for shift, part in _cut(along, dim, size, inner):
        yield from ((shift + more, hi, lo) for more, hi, lo in _split(part, size))


def _cut(along: Along, dim: Dim, size: int, inner: Along) -> Iterator[Part]:
    """Cuts one index at the multiples of `size`: a head, whole blocks, a tail; or all singly."""
    spread = inner.offset % dim.place + inner.reach - (dim.length - 1) * dim.place
    if size % dim.place or spread >= dim.place:
        if dim.length > LIMIT:
            raise Irregular
        yield from (fixed(along, dim, index) for index in range(dim.length))
        return
    block = size // dim.place
    head = min(dim.length, -(inner.offset // dim.place) % block)
    count = (dim.length - head) // block
    tail = head + count * block
    if head:
        yield _ranged(along, dim, 0, head)
    if count:
        dims = (Dim(count, size, dim.step * block), Dim(block, dim.place, dim.step))
        offset = along.offset + head * dim.place
        yield head * dim.step, Along(offset, (*_without(along, dim), *dims))
    if tail < dim.length:
        yield _ranged(along, dim, tail, dim.length)


def flatten(axes: Axes, shape: Shape) -> Along:
    """One axis in C order."""
    offset, dims, stride = 0, [], 1
    for along, size in zip(reversed(axes), reversed(shape), strict=True):
        offset += along.offset * stride
        dims += [Dim(d.length, d.place * stride, d.step) for d in along.dims]
        stride *= size
    return normal(offset, tuple(dims))


@lru_cache(maxsize=1 << 16)
def reshape(axes: Axes, old: Shape, new: Shape) -> tuple[Piece, ...]:
    """The same elements in C order under a new shape."""
    if 0 in new:
        return ()
    pieces: list[tuple[int, Along, Axes]] = [(0, flatten(axes, old), ())]
    for size in reversed(new[1:]):
        pieces = [
            (shift + more, outer, (inner, *done))
            for shift, along, done in pieces
            for more, outer, inner in split(along, size)
        ]
    return tuple((shift, (along, *done) if new else ()) for shift, along, done in pieces)


def on_axis(axes: Axes, axis: int, parts: Sequence[Part]) -> tuple[Piece, ...]:
    """The box with one axis exchanged for each of the parts."""
    return tuple((shift, (*axes[:axis], part, *axes[axis + 1 :])) for shift, part in parts)


@lru_cache(maxsize=1 << 16)
def every(along: Along, stride: int) -> tuple[Part, ...]:
    """Positions 0, stride, 2 * stride, ..."""
    if stride == 1:
        return ((0, along),)
    return tuple(
        (shift + more, outer)
        for shift, outer, inner in split(along, stride)
        for more, _ in window(inner, 0, 1)
    )


def shifted(along: Along, offset: int, dilation: int = 1) -> Along:
    """Positions moved up, after holes were put between them."""
    dims = tuple(Dim(d.length, d.place * dilation, d.step) for d in along.dims)
    return normal(along.offset * dilation + offset, dims)


def reversed_axis(along: Along, size: int) -> Part:
    """Position p becomes size - 1 - p."""
    shift = sum((d.length - 1) * d.step for d in along.dims)
    dims = tuple(Dim(d.length, d.place, -d.step) for d in along.dims)
    return shift, normal(size - 1 - along.offset - along.reach, dims)


def extent(axes: Axes) -> int:
    """Number of positions that the box reaches."""
    return math.prod(d.length for along in axes for d in along.dims)
