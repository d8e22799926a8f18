"""Every network of the zoo: nothing is found that changes the function, and nothing is missed.

The zoo's `scales` are counts of the numerical oracle (`symmetry_oracle.py`); there is no exception.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import symmetry_oracle
from by_hand import apply_table, in_float64, random_log2, table_of, widened
from flaxcle import Spec
from flaxcle.discover import find_spec
from flaxcle.paths import named_leaves
from golden_groups import expected, written
from zoo import build, networks

ORACLE = (
    *("mlp", "conv1d", "grouped", "depthwise_multiplier", "shufflenetv2", "squeeze_excite"),
    *("lora_weight_norm", "linear_attention", "siamese_product", "relu_rnn", "scan_stack"),
    *("moe_top2", "op_slice", "op_pad", "op_square_root", "leaky_prelu"),
)


EXPECTED = expected()


@cache
def found(name: str) -> Spec:
    network = build(name)
    return find_spec(network.fn, network.params, *network.inputs)


@pytest.fixture(params=list(networks()))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_random_scales_on_all_groups_leave_the_function_unchanged(name):
    network, spec = build(name), found(name)
    run, wide = in_float64(network.fn, *network.inputs), widened(network.params)
    moved = apply_table(wide, spec, random_log2(spec))
    for before, after in zip(run(wide), run(moved), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9 * np.abs(before).max())


def test_as_many_scales_as_the_oracle_counts(name):
    expected = build(name).scales
    assert expected is not None, "the zoo states a count for every network"
    assert found(name).scales == expected


@pytest.mark.parametrize("name", [name for name in networks() if build(name).pairs])
def test_finds_every_group_that_can_be_declared(name):
    network = build(name)
    shapes = {path: jnp.shape(leaf) for path, leaf in named_leaves(network.params).items()}
    have = {table_of(group, shapes) for group in found(name).groups}
    for group in Spec.from_pairs(network.pairs, network.params).groups:
        assert table_of(group, shapes) in have, group.name


def test_the_groups_and_the_reasons_are_those_written_out(name):
    """A difference that is an improvement: run `python tests/golden_groups.py` and read it."""
    assert written(found(name)) == EXPECTED[name]


@pytest.mark.parametrize("name", ORACLE)
def test_oracle_calls_the_spec_sound_and_complete(name):
    network = build(name)
    with jax.enable_x64(True):
        params, inputs = jax.tree.map(jnp.asarray, widened((network.params, network.inputs)))
        count = symmetry_oracle.count(network.fn, params, inputs, found(name))
    assert count.sound
    assert count.complete, count
