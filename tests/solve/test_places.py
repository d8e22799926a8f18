"""The scales on an entry, against unravelled positions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle import Group, Site, Spec
from flaxcle.solve.layout import Layout, make_layouts
from flaxcle.solve.places import NO_END, places_of
from flaxcle.solve.plan import Link, make_plan

SHAPE = (20, 4, 18)
INDEX = np.array([0, 1, -1, 1, 0] + [2] * 13)


def layout_of(rows: dict[str, tuple[int, ...]]) -> Layout:
    """Groups that read the leaf `w` along some axes, each made by a vector; one by `INDEX`."""
    shapes, groups = [("w", SHAPE)], []
    for name, axes in rows.items():
        own = tuple(SHAPE[axis] for axis in axes)
        reads = Site("w", axes, -1)
        if name == "indexed":
            own, reads = (3,), Site("w", axes, -1, INDEX)
        shapes.append((name, own))
        groups.append(Group(name, own, (Site(name, tuple(range(len(own)))), reads)))
    (layout,) = make_layouts(make_plan(Spec(tuple(groups)), tuple(shapes)))
    return layout


def expected(layout: Layout, link: Link, at: int, along: int) -> list[int]:
    """The numbers of the exponents on one weight, by NumPy's own unravelling."""
    leaf = layout.plan.leaves[link.leaf]
    place: dict[int, int] = {}
    for flat, axes in ((at, link.axes), (along, leaf.rest(link))):
        found = np.unravel_index(flat, [leaf.shape[axis] for axis in axes])
        place |= dict(zip(axes, map(int, found), strict=True))
    return [
        int(layout.numbers(other)[tuple(place[axis] for axis in other.axes)])
        for other in leaf.others(link)
    ]


def starts(layout: Layout) -> Iterator[tuple[Link, int, int]]:
    """Each link with its first position and its first row."""
    position = row = 0
    for link in layout.searched:
        yield link, position, row
        position, row = position + link.ids.size, row + layout.size_of(link)


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        ({"a": (1,), "b": (0, 2)}, {(1, NO_END)}),
        ({"a": (1,), "b": (0,), "c": (2,)}, {(1, 18), (18, NO_END)}),
        ({"a": (0,), "b": (1,), "c": (1, 2)}, {(1, NO_END), (18, NO_END)}),
        ({"a": (0, 1), "b": (1, 2)}, {(1, NO_END)}),
        ({"a": (0,), "indexed": (2,)}, {(1, NO_END)}),
    ],
    ids=("pair", "three", "nested", "crossed", "indexed"),
)
def test_the_numbers_are_those_of_the_place(rows, runs):
    layout = layout_of(rows)
    places, rng = places_of(layout), np.random.default_rng(0)
    found = {(int(d), int(s)) for d, s, _ in places.runs.reshape(3, -1).T}
    assert found >= runs
    for link, first, row in starts(layout):
        leaf = layout.plan.leaves[link.leaf]
        extent = math.prod(leaf.shape[axis] for axis in leaf.rest(link))
        for at, channel in enumerate(link.ids.ravel()):
            along = rng.integers(extent, size=places.rows.size).astype(np.int32)
            positions = np.full(places.count, first + at)
            numbers = places.numbers(jnp.asarray(positions), jnp.asarray(along))
            own = expected(layout, link, at, int(along[first + at]))
            assert numbers[: len(own), row + max(channel, 0)].tolist() == own


def test_one_position_a_row_needs_no_winners():
    layout = layout_of({"a": (1,), "b": (0, 2)})
    places = places_of(layout)
    assert places.winners(jnp.ones(places.count)) is None
    along = jnp.arange(places.count, dtype=jnp.int32) % 4
    itself = places.numbers(jnp.arange(places.count, dtype=jnp.int32), along)
    np.testing.assert_array_equal(places.numbers(None, along), itself)


def test_the_last_of_the_largest_wins():
    layout = layout_of({"a": (0,), "indexed": (2,)})
    places = places_of(layout)
    ((first, row),) = [(first, row) for link, first, row in starts(layout) if link.axes == (1,)]
    best = (
        jnp.zeros(places.rows.size)
        .at[first + np.arange(5)]
        .set(jnp.array([7.0, 5.0, 9.0, 5.0, 6.0]))
    )
    at = places.winners(best)
    assert at is not None
    assert at[row : row + 3].tolist() == [first, first + 3, first + 17]


@pytest.mark.parametrize(("channels", "dtype"), [(2**15 - 3, np.uint16), (2**15 - 2, np.int32)])
def test_numbers_of_exponents_have_room(channels, dtype):
    spread = np.exp2(np.arange(channels) % 5).astype(np.float32)
    params = {"made": spread[None] * np.ones((2, 1), np.float32), "read": np.ones((channels, 2))}
    params = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in params.items()}
    pair = Group("pair", (channels,), (Site("made", (1,)), Site("read", (0,), -1)))
    inner = Group("rows", (2,), (Site("made", (0,)), Site("rows", (0,), -1)))
    spec, params = Spec((pair, inner)), params | {"rows": jnp.ones(2)}
    (layout,) = make_layouts(make_plan(spec, tuple((p, x.shape) for p, x in params.items())))
    assert layout.number_dtype == dtype
    once = fc.equalize(params, spec)
    assert float(fc.solve(once, spec, max_sweeps=1).residual) <= np.log2(1.001)
