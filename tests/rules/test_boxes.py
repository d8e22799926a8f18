"""Boxes move as arrays of symbols do, and equations between them are those of their elements."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np
import pytest

from flaxcle.rules import box, scale
from flaxcle.rules.box import Shape
from flaxcle.rules.cells import rows_of
from flaxcle.rules.scale import Term, Terms

WEIGHTS = np.random.default_rng(0).normal(size=4096)
Move = Callable[[random.Random, Terms, np.ndarray], tuple[Terms, np.ndarray]]


def dense(terms: Terms, shape: Shape) -> np.ndarray:
    """The sum of the terms at every position, each symbol standing for a random number."""
    out = np.zeros(shape)
    for term in terms:
        places, symbols = listed(term)
        np.add.at(out, tuple(places), float(term.power) * WEIGHTS[symbols])
    return out


def listed(term: Term) -> tuple[list[np.ndarray], np.ndarray]:
    """All positions of a box, axis by axis, and the symbol of each."""
    dims = [(axis, dim) for axis, along in enumerate(term.axes) for dim in along.dims]
    count = math.prod(dim.length for _, dim in dims)
    grid = np.indices([dim.length for _, dim in dims]).reshape(len(dims), count)
    places = [np.full(count, along.offset) for along in term.axes]
    symbols = np.full(count, term.base)
    for (axis, dim), index in zip(dims, grid, strict=True):
        places[axis] = places[axis] + dim.place * index
        symbols = symbols + dim.step * index
    return places, symbols


def a_shape(rng: random.Random, size: int) -> Shape:
    """A random way to write this many elements, with axes of size one."""
    factors = []
    while size > 1:
        factor = rng.choice([d for d in range(2, size + 1) if size % d == 0])
        factors.append(factor)
        size //= factor
    for _ in range(rng.randint(0, 2)):
        factors.insert(rng.randint(0, len(factors)), 1)
    return tuple(factors) or (1,)


def reshaped(rng: random.Random, terms: Terms, array: np.ndarray) -> tuple[Terms, np.ndarray]:
    new = a_shape(rng, array.size)
    return scale.reshape(terms, array.shape, new), array.reshape(new)


def transposed(rng: random.Random, terms: Terms, array: np.ndarray) -> tuple[Terms, np.ndarray]:
    order = rng.sample(range(array.ndim), array.ndim)
    return scale.transpose(terms, order), array.transpose(order)


def sliced(rng: random.Random, terms: Terms, array: np.ndarray) -> tuple[Terms, np.ndarray]:
    axis = rng.randrange(array.ndim)
    start = rng.randrange(array.shape[axis])
    stop, stride = rng.randint(start + 1, array.shape[axis]), rng.choice([1, 1, 2, 3])
    taken = np.moveaxis(np.moveaxis(array, axis, 0)[start:stop:stride], 0, axis)
    return scale.window(terms, axis, start, stop, stride), taken


def flipped(rng: random.Random, terms: Terms, array: np.ndarray) -> tuple[Terms, np.ndarray]:
    axis = rng.randrange(array.ndim)
    size = array.shape[axis]
    turn = lambda axes: box.on_axis(axes, axis, [box.reversed_axis(axes[axis], size)])  # noqa: E731
    return scale.move(terms, turn), np.flip(array, axis)


def spaced(rng: random.Random, terms: Terms, array: np.ndarray) -> tuple[Terms, np.ndarray]:
    axis, offset, dilation = rng.randrange(array.ndim), rng.randint(0, 3), rng.choice([1, 1, 2])
    front = np.moveaxis(array, axis, 0)
    out = np.zeros((offset + (len(front) - 1) * dilation + 1 + rng.randint(0, 2), *front.shape[1:]))
    out[offset : offset + (len(front) - 1) * dilation + 1 : dilation] = front
    return scale.place(terms, axis, offset, dilation), np.moveaxis(out, 0, axis)


def doubled(rng: random.Random, terms: Terms, array: np.ndarray) -> tuple[Terms, np.ndarray]:
    axis = rng.randrange(array.ndim)
    parts = (*scale.place(terms, axis, 0), *scale.place(terms, axis, array.shape[axis]))
    return scale.fuse(parts), np.concatenate([array, array], axis)


def spread(rng: random.Random, terms: Terms, array: np.ndarray) -> tuple[Terms, np.ndarray]:
    axis = rng.randint(0, array.ndim)
    return scale.insert(terms, axis, 3), np.repeat(np.expand_dims(array, axis), 3, axis)


MOVES: tuple[Move, ...] = (reshaped, transposed, sliced, flipped, spaced, doubled, spread)


def a_view(rng: random.Random, base: int) -> tuple[Terms, np.ndarray]:
    """A leaf's symbols behind a few random layout operations, as boxes and as an array."""
    shape = a_shape(rng, rng.choice([6, 12, 24, 30, 36]))
    axes = [axis for axis in range(len(shape)) if rng.random() < 0.6]
    terms: Terms = (Term(1, base, box.row_major(shape, axes)),)
    array = dense(terms, shape)
    for _ in range(rng.randint(0, 4)):
        terms, array = rng.choice(MOVES)(rng, terms, array)
    return terms, array


@pytest.mark.parametrize("seed", range(400))
def test_layout_operations_move_boxes_as_they_move_elements(seed):
    terms, array = a_view(random.Random(seed), 100)
    np.testing.assert_allclose(dense(terms, array.shape), array)


@pytest.mark.parametrize("seed", range(200))
def test_rows_say_what_the_elements_say(seed):
    """The solutions of the rows are those of one equation for every position."""
    rng = random.Random(seed)
    one, first = next(view for view in iter(lambda: a_view(rng, 0), None) if view[1].size < 150)
    shape, symbols = first.shape, 200
    axes = [axis for axis in range(len(shape)) if rng.random() < 0.6]
    two = Term(-1, 40, box.row_major(shape, axes))
    terms = scale.add(one, (two,))
    by_position = np.zeros((math.prod(shape), symbols))
    for term in terms:
        places, found = listed(term)
        at = np.ravel_multi_index(places, shape)
        np.add.at(by_position, (at, found), float(term.power))
    assert _same_solutions(by_position, _equations(terms, shape, symbols))


def _equations(terms: Terms, shape: Shape, symbols: int) -> np.ndarray:
    """The rows of all cells as a matrix; fresh scalars get columns of their own."""
    out, extra = [], symbols
    for fresh, parts in rows_of(tuple(term.axes for term in terms), shape):
        bases = [*(term.base for term in terms), *range(extra, extra + fresh)]
        powers = [*(term.power for term in terms), *([1] * fresh)]
        extra += fresh
        for part in parts:
            for starts in part.starts:
                for t in range(part.length):
                    row = np.zeros(symbols + 100)
                    for number, sign, start, step in zip(
                        part.boxes, part.signs, starts, part.steps, strict=True
                    ):
                        row[bases[number] + start + step * t] += sign * float(powers[number])
                    out.append(row)
    assert extra <= symbols + 100
    return np.array(out).reshape(-1, symbols + 100)


def _same_solutions(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether both leave the same freedom to the symbols; `two` has more of them, to be solved."""
    symbols, rank = one.shape[1], np.linalg.matrix_rank
    if not two.size:
        return not one.any()
    wide = np.concatenate([one, np.zeros((len(one), two.shape[1] - symbols))], axis=1)
    implied = rank(np.concatenate([wide, two])) == rank(two)
    return implied and rank(two) - rank(two[:, symbols:]) == rank(one)


def test_the_number_of_rows_does_not_depend_on_the_sizes():
    """A flattened image, grouped queries and a joint bias, small and large."""

    def rows(width: int) -> int:
        shape = (7, 4, width)
        boxes = (box.row_major(shape, (1, 2)), box.row_major(shape, (2,)))
        return sum(len(part.starts) for _, parts in rows_of(boxes, shape) for part in parts)

    assert rows(8) == rows(100_000) == 4
