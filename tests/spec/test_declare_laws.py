"""Laws of declared specs over the zoo: the function stays, the container does not matter."""

from __future__ import annotations

from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx

from by_hand import apply_table, in_float64, random_log2, widened
from flaxcle import Spec
from zoo import Network, build, networks


def _declared() -> list[str]:
    return [name for name in networks() if build(name).pairs]


@pytest.fixture(scope="module", params=_declared())
def network(request: pytest.FixtureRequest) -> Network:
    return build(request.param)


@pytest.fixture(scope="module")
def spec(network: Network) -> Spec:
    return Spec.from_pairs(network.pairs, network.params)


def test_random_scales_preserve_the_function(network: Network, spec: Spec) -> None:
    wide = widened(network.params)
    before = in_float64(network.fn, wide, *network.inputs)
    after = in_float64(network.fn, apply_table(wide, spec, random_log2(spec)), *network.inputs)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-9, atol=1e-9 * np.abs(old).max())


def test_powers_of_two_are_bit_exact(network: Network, spec: Spec) -> None:
    scaled = apply_table(network.params, spec, random_log2(spec, whole=True))
    run = jax.jit(network.fn)
    before, after = (run(params, *network.inputs) for params in (network.params, scaled))
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(scaled), jax.tree.leaves(network.params), strict=True)
    )


def test_json_round_trip_is_exact(spec: Spec) -> None:
    assert Spec.from_json(spec.to_json()) == spec


def test_printing_is_narrow_and_names_every_group(spec: Spec) -> None:
    text = str(spec)
    assert max(map(len, text.splitlines())) <= 110
    assert all(group.name in text for group in spec.groups)


def test_groups_are_not_more_than_the_symmetries(network: Network, spec: Spec) -> None:
    assert spec.scales <= (network.scales or spec.scales)


def test_shapes_alone_give_the_same_spec(network: Network, spec: Spec) -> None:
    abstract = jax.eval_shape(lambda tree: tree, network.params)
    assert Spec.from_pairs(network.pairs, abstract) == spec


def test_containers_give_the_same_spec(network: Network, spec: Spec) -> None:
    for tree in _containers(network.params):
        assert Spec.from_pairs(network.pairs, tree) == spec, type(tree)


def _containers(params: Any) -> list[Any]:
    if isinstance(params, nnx.State):
        pure = nnx.to_pure_dict(params)
        return [pure, flax.core.freeze(pure)]
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, names=(None,) * leaf.ndim), params)
    return [flax.core.freeze(params), boxed, nnx.State(params)] if _is_mapping(params) else []


def _is_mapping(params: Any) -> bool:
    return isinstance(params, dict | flax.core.FrozenDict)
