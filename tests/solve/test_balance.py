"""The balance of one group: closed forms, weights of its terms, guards, bounds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle import Group, Site, Spec

RNG = np.random.default_rng(0)


def array(*shape: int, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape) * np.exp2(RNG.normal(size=shape[-1])), dtype)


def pair(a: jax.Array, b: jax.Array, bias: jax.Array | None = None) -> tuple[dict, Spec]:
    sites = [Site("a", (1,)), Site("b", (0,), -1)]
    params = {"a": a, "b": b}
    if bias is not None:
        sites.append(Site("bias", (0,)))
        params["bias"] = bias
    return params, Spec((Group("g", (a.shape[1],), tuple(sites)),))


def test_a_pair_meets_at_the_geometric_mean():
    params, spec = pair(array(9, 6), array(6, 4))
    before = np.abs(params["a"]).max(0), np.abs(params["b"]).max(1)
    after = fc.equalize(params, spec)
    wanted = np.sqrt(before[0].astype(float) * before[1])
    np.testing.assert_allclose(np.abs(after["a"]).max(0), wanted, rtol=1e-6)
    np.testing.assert_allclose(np.abs(after["b"]).max(1), wanted, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_alpha_weighs_the_producer(alpha):
    params, spec = pair(array(9, 6), array(6, 4))
    out, into = np.abs(params["a"]).max(0), np.abs(params["b"]).max(1)
    scales = fc.solve(params, spec, alpha=alpha)
    np.testing.assert_allclose(scales["g"], into ** (1 - alpha) / out**alpha, rtol=1e-5)


def test_a_norm_counts_with_the_larger_of_its_vectors():
    params = {"s": jnp.array([1.0, 1.0]), "b": jnp.array([0.0, 4.0]), "k": jnp.ones((2, 3))}
    sites = (Site("s", (0,)), Site("b", (0,)), Site("k", (0,), -1))
    scales = fc.solve(params, Spec((Group("g", (2,), sites),)))
    np.testing.assert_allclose(scales["g"], [1.0, 0.5], rtol=1e-6)


def test_a_bias_beside_a_kernel_does_not_count():
    params, spec = pair(jnp.ones((2, 3)), jnp.ones((3, 2)), jnp.array([100.0, 1.0, 0.0]))
    np.testing.assert_array_equal(fc.solve(params, spec)["g"], jnp.ones(3))


def test_a_group_without_a_second_side_keeps_scale_one():
    spec = Spec((Group("g", (3,), (Site("a", (1,)),)),))
    params = {"a": array(2, 3)}
    scales = fc.solve(params, spec)
    assert scales.kept["g"].all()
    np.testing.assert_array_equal(scales["g"], jnp.ones(3))
    assert fc.equalize(params, spec)["a"] is params["a"]


def test_a_held_group_stays_and_its_leaves_are_not_touched():
    params, spec = pair(array(4, 3), array(3, 2))
    held = Spec((Group("g", (3,), spec.groups[0].sites, held=True),))
    assert fc.equalize(params, held) is params
    assert not fc.solve(params, held).kept["g"].any()
    assert np.abs(fc.solve(params, held.select("g")).log2["g"]).max() > 0


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_what_counts_as_zero_does_not_depend_on_the_scale(factor):
    """The product of the two ranges says it, and no rescaling of the channel changes that."""
    a = jnp.array([[1.0, 1e-12 * factor, 1e-3 * factor]], jnp.float32)
    b = jnp.array([[1.0], [1.0 / factor], [1.0 / factor]], jnp.float32)
    params, spec = pair(a, b)
    assert fc.solve(params, spec).kept["g"].tolist() == [False, True, False]


def test_a_dead_member_is_left_out_of_the_mean():
    sites = (Site("a", (1,)), Site("c", (1,)), Site("b", (0,), -1))
    params = {"a": jnp.full((2, 2), 4.0), "c": jnp.array([[0.0, 4.0]]), "b": jnp.ones((2, 3))}
    scales = fc.solve(params, Spec((Group("g", (2,), sites),)))
    np.testing.assert_allclose(scales["g"], [0.5, 0.5], rtol=1e-6)
    assert not scales.kept["g"].any()


@pytest.mark.parametrize("bias", [60000.0, 65504.0])
def test_a_bias_in_float16_does_not_overflow(bias):
    a, b = array(1, 2, dtype=jnp.float16) * 0 + 2.0**-6, jnp.full((2, 1), 16.0, jnp.float16)
    params, spec = pair(a.astype(jnp.float16), b, jnp.array([bias, 1.0], jnp.float16))
    after = fc.equalize(params, spec)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in after.values())
    assert fc.solve(params, spec).log2["g"][1] > 4


def test_powers_follow_the_least_squares_balance():
    sites = (Site("a", (1,), 2), Site("b", (0,), -1))
    params = {"a": jnp.full((1, 2), 8.0), "b": jnp.full((2, 1), 2.0)}
    scales = fc.solve(params, Spec((Group("g", (2,), sites),)))
    np.testing.assert_allclose(scales.log2["g"], -(0.5 * 2 * 3 - 0.5 * 1) / (0.5 * 4 + 0.5))


def test_half_powers_round_so_that_every_factor_is_a_power_of_two():
    sites = (Site("a", (1,), "1/2"), Site("b", (0,), -1))
    params = {"a": array(3, 5), "b": array(5, 3)}
    scales = fc.solve(params, Spec((Group("g", (5,), sites),)), power_of_two=True)
    np.testing.assert_array_equal(scales.log2["g"] % 2, 0)


def test_double_precision_params_keep_their_digits():
    with jax.enable_x64(True):
        params, spec = pair(array(4, 3, dtype=jnp.float64), array(3, 2, dtype=jnp.float64))
        after = fc.equalize(params, spec)
        assert after["a"].dtype == jnp.float64
        product, wanted = after["a"] @ after["b"], params["a"] @ params["b"]
        np.testing.assert_allclose(product, wanted, rtol=1e-13, atol=1e-13)
