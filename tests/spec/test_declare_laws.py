"""Laws of declared specs over the zoo: the function stays, the container does not matter."""

from __future__ import annotations

from functools import cache
from typing import Any

import flax
import flax.linen as nn
import jax
import pytest
from flax import nnx

from by_hand import assert_preserved
from flaxcle import Spec
from zoo import Network, build, networks

# Everything that a chain can say about these networks, concats and norms included.
FULL = {
    "unet": (
        *(("Conv_0", "Conv_1"), ("Conv_2", "Conv_3"), ("Conv_4", "Conv_5", "ConvTranspose_0")),
        ("Conv_1", ("Conv_2", "Conv_8[at=4]")),
        ("Conv_3", ("Conv_4", "Conv_6[at=6]")),
        ("ConvTranspose_0", "Conv_6[at=0]"),
        ("Conv_6", "Conv_7", "ConvTranspose_1", "Conv_8[at=0]"),
        ("Conv_8", "Conv_9", "Conv_10"),
    ),
    "densenet": (
        *((f"Conv_{i}", f"Conv_{i + 1}") for i in (1, 3, 5, 8, 10, 12)),
        ("Conv_0", ("Conv_1", "Conv_3[at=0]", "Conv_5[at=0]", "Conv_7[at=0]")),
        ("Conv_2", ("Conv_3[at=4]", "Conv_5[at=4]", "Conv_7[at=4]")),
        ("Conv_4", ("Conv_5[at=7]", "Conv_7[at=7]")),
        ("Conv_6", "Conv_7[at=10]"),
        ("Conv_7", ("Conv_8", "Conv_10[at=0]", "Conv_12[at=0]", "Dense_0[at=0]")),
        ("Conv_9", ("Conv_10[at=6]", "Conv_12[at=6]", "Dense_0[at=6]")),
        ("Conv_11", ("Conv_12[at=9]", "Dense_0[at=9]")),
        ("Conv_13", "Dense_0[at=12]"),
    ),
    "group_norm": (("GroupNorm_0", "Conv_1", "Dense_0"),),
}
NORMS = {
    "vit": (
        (
            "EncoderBlock_0/LayerNorm_0",
            tuple(
                f"EncoderBlock_0/MultiHeadDotProductAttention_0/{n}"
                for n in ["query", "key", "value"]
            ),
        ),
        ("EncoderBlock_0/LayerNorm_1", "EncoderBlock_0/Dense_0"),
    ),
    "llama": (("layer_0/mlp_norm", ("layer_0/up", "layer_0/gate")), ("norm", "head")),
}


def _cases() -> list[tuple[str, tuple]]:
    declared = [(name, build(name).pairs) for name in networks()]
    return [case for case in [*declared, *FULL.items(), *NORMS.items()] if case[1]]


@cache
def _spec(name: str, pairs: tuple) -> Spec:
    return Spec.from_pairs(pairs, build(name).params)


@pytest.fixture(params=_cases(), ids=lambda case: case[0])
def case(request: pytest.FixtureRequest) -> tuple[Network, tuple, Spec]:
    name, pairs = request.param
    return build(name), pairs, _spec(name, pairs)


def test_scales_preserve_the_function(case: tuple[Network, tuple, Spec]) -> None:
    network, _, spec = case
    exact = network.name != "op_cube_root_of_cube"  # XLA's cbrt rounds 8 * x unlike x
    assert_preserved(network.fn, network.params, spec, *network.inputs, exact=exact)


def test_json_round_trip_is_exact(case: tuple[Network, tuple, Spec]) -> None:
    spec = case[2]
    assert Spec.from_json(spec.to_json()) == spec


def test_printing_is_narrow_and_names_every_group(case: tuple[Network, tuple, Spec]) -> None:
    spec = case[2]
    lines = str(spec).splitlines()
    assert max(map(len, lines)) <= 110
    assert len(lines) <= 2 + 4 * len(spec.groups) + sum(len(g.sites) // 4 for g in spec.groups)
    assert all(any(line.startswith(group.name) for line in lines) for group in spec.groups)


def test_every_leaf_is_explained(case: tuple[Network, tuple, Spec]) -> None:
    spec = case[2]
    for group in spec.groups:
        for site in group.sites:
            assert repr(group.name) in " ".join(spec.explain(site.path).split())


def test_there_are_no_more_groups_than_symmetries(case: tuple[Network, tuple, Spec]) -> None:
    network, _, spec = case
    assert spec.scales <= (network.scales or spec.scales)


@pytest.mark.parametrize("name", FULL)
def test_concats_and_norms_are_declared_completely(name: str) -> None:
    assert _spec(name, FULL[name]).scales == build(name).scales


def test_shapes_alone_give_the_same_spec(case: tuple[Network, tuple, Spec]) -> None:
    network, pairs, spec = case
    abstract = jax.eval_shape(lambda tree: tree, network.params)
    assert Spec.from_pairs(pairs, abstract) == spec


def test_containers_give_the_same_spec(case: tuple[Network, tuple, Spec]) -> None:
    network, pairs, spec = case
    for tree in _containers(network.params):
        assert Spec.from_pairs(pairs, tree) == spec, type(tree)


def _containers(params: Any) -> list[Any]:
    if isinstance(params, nnx.State):
        pure = nnx.to_pure_dict(params)
        return [pure, flax.core.freeze(pure)]
    boxed = jax.tree.map(lambda leaf: nn.Partitioned(leaf, names=(None,) * leaf.ndim), params)
    return [flax.core.freeze(params), boxed, nnx.State(params)]
