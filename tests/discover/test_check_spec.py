"""`check_spec` accepts what is true, and refuses every spec that changes the function.

Mutants: one site of a true spec is deleted, or gets the opposite power, or another axis.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from by_hand import apply_table, in_float64, random_log2, widened
from flaxcle import Group, Site, Spec
from flaxcle.discover import check_spec, find_spec
from flaxcle.errors import SpecError
from zoo import build, networks

Mutation = Callable[[Group, int], Group]


def without(group: Group, at: int) -> Group:
    return replace(group, sites=group.sites[:at] + group.sites[at + 1 :])


def inverted(group: Group, at: int) -> Group:
    site = group.sites[at]
    changed = replace(site, power=-site.power)
    return replace(group, sites=(*group.sites[:at], changed, *group.sites[at + 1 :]))


def squared(group: Group, at: int) -> Group:
    site = group.sites[at]
    changed = replace(site, power=site.power * Fraction(2))
    return replace(group, sites=(*group.sites[:at], changed, *group.sites[at + 1 :]))


MUTATIONS: tuple[Mutation, ...] = (without, inverted, squared)


@cache
def found(name: str) -> Spec:
    network = build(name)
    return find_spec(network.fn, network.params, *network.inputs)


def changes(name: str, spec: Spec) -> bool:
    """Whether random scales change the function, in float64."""
    network = build(name)
    run, wide = in_float64(network.fn, *network.inputs), widened(network.params)
    pairs = zip(run(wide), run(apply_table(wide, spec, random_log2(spec))), strict=True)
    return any(np.abs(a - b).max() > 1e-9 * np.abs(a).max() for a, b in pairs)


@pytest.mark.parametrize("name", list(networks()))
def test_accepts_what_was_found(name):
    network, spec = build(name), found(name)
    if spec.groups:
        check_spec(network.fn, network.params, spec, *network.inputs)


@pytest.mark.parametrize("name", list(networks()))
def test_refuses_mutants(name):
    """Only a mutant that keeps the function, such as one of a dead parameter, may pass."""
    network, rng = build(name), random.Random(name)
    groups = [group for group in found(name).groups if len(group.sites) > 1]
    for mutation in MUTATIONS if groups else ():
        group = rng.choice(groups)
        spec = Spec((mutation(group, rng.randrange(len(group.sites))),))
        if changes(name, spec):
            with pytest.raises(SpecError, match="the spec would change the function"):
                check_spec(network.fn, network.params, spec, *network.inputs)


@pytest.mark.parametrize("name", [name for name in networks() if build(name).pairs])
def test_accepts_what_is_declared(name):
    network = build(name)
    spec = Spec.from_pairs(network.pairs, network.params)
    check_spec(network.fn, network.params, spec, *network.inputs)


@pytest.mark.parametrize("name", [name for name in networks() if build(name).illegal])
def test_refuses_what_only_looks_right(name):
    network = build(name)
    with pytest.raises(SpecError):
        check_spec(
            network.fn,
            network.params,
            Spec.from_pairs(network.illegal, network.params),
            *network.inputs,
        )


PARAMS = {name: {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)} for name in "abc"}
X = jnp.ones((2, 4))


def dense(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ p["kernel"] + p["bias"][None]


def skip(p: dict[str, dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["c"], jax.nn.relu(dense(p["b"], h))) + h @ p["c"]["kernel"]


def residual(p: dict[str, dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    h = dense(p["a"], x)
    return dense(p["c"], jax.nn.relu(h + dense(p["b"], x)))


def gelu(p: dict[str, dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    return dense(p["b"], jax.nn.gelu(dense(p["a"], x)))


def tapped(p: dict[str, dict[str, jax.Array]], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    h = jax.nn.relu(dense(p["a"], x))
    return dense(p["b"], h), h


def pair(first: str, second: str, power: int = -1) -> Group:
    rows = (
        Site(f"{first}/kernel", (1,)),
        Site(f"{first}/bias", (0,)),
        Site(f"{second}/kernel", (0,), power),
    )
    return Group(f"{first} -> {second}", (4,), rows)


@pytest.mark.parametrize(
    ("fn", "group", "parts"),
    [
        (skip, pair("a", "b"), ["'c/kernel' also consumes the scaled channels of 'a -> b'"]),
        (residual, pair("a", "c"), ["what 'b/kernel' makes meets", "'a -> c' in 'add'"]),
        (gelu, pair("a", "b"), ["gelu is not positively homogeneous, which breaks 'a -> b'"]),
        (tapped, pair("a", "b"), ["'a -> b' scales an output", "channels 0 to 3"]),
        (residual, without(pair("a", "c"), 0), ["'a/bias' carries the scale", "'a/kernel' makes"]),
        (gelu, without(pair("a", "b"), 1), ["'a/bias' meets in 'add' the scaled channels"]),
        (tapped, pair("a", "b", -2), ["'a -> b'", "What to do: "]),
    ],
)
def test_message_names_group_leaf_operation_and_line(fn, group, parts):
    params = {name: leaf for name, leaf in PARAMS.items() if name in "abc"}
    with pytest.raises(SpecError) as caught:
        check_spec(fn, params, Spec((group,)), X)
    for part in ["the spec would change the function", *parts]:
        assert part in str(caught.value)
    assert "scales an output" in str(caught.value) or "test_check_spec.py:" in str(caught.value)


def test_shapes_suffice():
    params = jax.eval_shape(lambda: PARAMS)
    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    with pytest.raises(SpecError, match="gelu"):
        check_spec(gelu, params, Spec((pair("a", "b"),)), x)
