"""A spec that does not fit a tree is refused with path, axes and shape."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import Group, Site, Spec
from flaxcle.errors import FlaxcleError, PathError, SpecError, WeightError
from flaxcle.spec import check_fit

PARAMS = {
    "a": {"kernel": np.ones((3, 4), np.float32), "bias": jnp.ones(4, jnp.bfloat16)},
    "b": {"kernel": jax.ShapeDtypeStruct((4, 2), jnp.float16)},
    "codes": np.ones((4, 2), np.int8),
    "key": jax.random.key(0),
    "empty": np.ones((0, 4), np.float32),
    "act": jax.nn.relu,
}


def one(*sites: Site, shape: tuple[int, ...] = (4,)) -> Spec:
    return Spec((Group("a -> b", shape, sites),))


def test_returns_the_leaves_by_path() -> None:
    spec = one(Site("a/kernel", (-1,)), Site("a/bias", (0,)), Site("b/kernel", (0,), -1))
    leaves = check_fit(spec, PARAMS)
    assert leaves["a/kernel"] is PARAMS["a"]["kernel"]
    assert set(leaves) >= {"a/kernel", "a/bias", "b/kernel", "codes", "key", "act"}


def test_a_tree_that_fits_does_not_vouch_for_another() -> None:
    spec = one(Site("a", (-1,)))
    check_fit(spec, {"a": np.ones((3, 4), np.float32)})
    for other in (np.ones((3, 5), np.float32), np.ones((3, 4), np.int8)):
        for _ in range(2):
            with pytest.raises(FlaxcleError, match="'a' of shape"):
                check_fit(spec, {"a": other})


def test_reads_shapes_only() -> None:
    spec = one(Site("a", (-1,)))
    jax.jit(lambda tree: check_fit(spec, tree)["a"])({"a": jnp.ones((3, 4))})


CASES: dict[str, tuple[Spec, type[FlaxcleError], list[str]]] = {
    "no groups": (Spec(), SpecError, ["nothing to scale", "Spec.from_pairs", "spec.blocked"]),
    "unknown path": (
        one(Site("a/kernl", (-1,))),
        PathError,
        ["scales 'a/kernl'", "group 'a -> b'", "'a/kernel'"],
    ),
    "integers": (
        one(Site("codes", (0,))),
        WeightError,
        ["dtype int8", "(4, 2)", "before quantizing"],
    ),
    "random key": (one(Site("key", ())), WeightError, ["dtype key<fry>", "'key' of shape ()"]),
    "function": (one(Site("act", ())), WeightError, ["can't scale a leaf of dtype custom_jvp"]),
    "axis out of range": (
        one(Site("a/kernel", (2,))),
        SpecError,
        ["axis out of range for rank 2", "'a/kernel' of shape (3, 4), axes (2,)"],
    ),
    "negative axis out of range": (one(Site("a/kernel", (-3,))), SpecError, ["axes (-3,)"]),
    "axis twice": (
        one(Site("a/kernel", (1, -1)), shape=(4, 4)),
        SpecError,
        ["names an axis twice"],
    ),
    "zero-size axis": (
        one(Site("empty", (0,))),
        SpecError,
        ["axis of size zero", "(0, 4)", "drop"],
    ),
    "other extent": (
        one(Site("a/kernel", (0,))),
        SpecError,
        ["the axes have extent (3,), the group has shape (4,)", "give an index"],
    ),
    "other index": (
        one(Site("a/kernel", (1,), 1, np.arange(3))),
        SpecError,
        ["the index has shape (3,), the axes have extent (4,)"],
    ),
    "channel out of range": (
        one(Site("a/kernel", (1,), 1, np.arange(1, 5))),
        SpecError,
        ["the index names channel 4, the group has 4"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refuses(name: str) -> None:
    spec, kind, parts = CASES[name]
    with pytest.raises(kind) as error:
        check_fit(spec, PARAMS)
    for part in parts:
        assert part in str(error.value)


def two(first: Any, second: Any, sizes: tuple[int, int], powers: tuple[int, int] = (1, 1)) -> Spec:
    return Spec(
        tuple(
            Group(name, (size,), (Site("w", (0,), power, ids),))
            for name, size, power, ids in zip("xy", sizes, powers, (first, second), strict=True)
        )
    )


def test_two_groups_may_not_cut_an_axis_across_each_other() -> None:
    spec = two(np.repeat(np.arange(2), 3), np.repeat(np.arange(3), 2), (2, 3))
    with pytest.raises(SpecError) as error:
        check_fit(spec, {"w": np.ones((6, 2), np.float32)})
    for part in ("contradicting indices", "'w' of shape (6, 2), axes (0,)", "'x' and 'y'", "join"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("first", "second", "sizes", "powers"),
    [
        pytest.param([0, 1, 2, -1, -1, -1], [-1, -1, -1, 0, 1, 2], (3, 3), (1, 1), id="concat"),
        pytest.param([0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5], (2, 6), (1, 1), id="nested"),
        pytest.param([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], (6, 6), (1, 1), id="one to one"),
        pytest.param([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], (2, 3), (1, 1), id="grid"),
        pytest.param([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2], (2, 3), (1, -1), id="in and out"),
    ],
)
def test_other_ways_to_share_an_axis_are_sound(
    first: list[int], second: list[int], sizes: tuple[int, int], powers: tuple[int, int]
) -> None:
    spec = two(np.array(first), np.array(second), sizes, powers)
    check_fit(spec, {"w": np.ones((6, 2), np.float32)})


def test_the_same_axis_counts_however_it_is_written() -> None:
    first = Group("x", (2,), (Site("w", (0,), 1, np.repeat(np.arange(2), 3)),))
    second = Group("y", (3,), (Site("w", (-2,), 1, np.repeat(np.arange(3), 2)),))
    with pytest.raises(SpecError, match="contradicting indices"):
        check_fit(Spec((first, second)), {"w": np.ones((6, 2), np.float32)})
