"""Bad input: every error says what, where and what to do, before anything is computed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle import Group, Scales, Site, Spec
from flaxcle.errors import ConfigError, PathError, SpecError, WeightError

PARAMS = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2)), "n": jnp.arange(3)}
PAIR = Spec((Group("g", (3,), (Site("a", (1,)), Site("b", (0,), -1))),))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            {"ranges": "activations"},
            "ranges='activations' is not possible. What to do: pass 'weights' or a Calibration.",
        ),
        (
            {"granularity": "per_group"},
            "granularity='per_group' .* pass 'per_tensor' or 'per_channel'",
        ),
        ({"alpha": 1.5}, "alpha=1.5 is not possible. What to do: pass a number from 0 to 1."),
        ({"alpha": True}, "alpha=True is not possible"),
        ({"max_scale": 0.5}, "max_scale=0.5 .* a number from 1 to 1.15292e"),
        ({"max_scale": float("inf")}, "max_scale=inf is not possible"),
        ({"tol": 0.0}, "tol=0.0 .* a number from 1e-06 to 1"),
        ({"tol": float("nan")}, "tol=nan is not possible"),
        ({"max_sweeps": 0}, "max_sweeps=0 .* a whole number from 1"),
        ({"max_sweeps": 2.0}, "max_sweeps=2.0 is not possible"),
        ({"power_of_two": 1}, "power_of_two=1 .* pass True or False"),
    ],
)
@pytest.mark.parametrize("call", [fc.solve, fc.equalize])
def test_options_out_of_their_range(call, option, message):
    with pytest.raises(ConfigError, match=message):
        call(PARAMS, PAIR, **option)


def test_numpy_numbers_are_numbers():
    fc.solve(PARAMS, PAIR, alpha=np.float64(0.5), max_sweeps=int(np.int64(3)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("leaf", ["a", "b"])
def test_weights_that_are_not_finite(leaf, value):
    bad = PARAMS | {leaf: PARAMS[leaf].at[1, 1].set(value)}
    with pytest.raises(WeightError, match=f"NaN or infinite: '{leaf}'. What to do: repair"):
        fc.equalize(bad, PAIR)


def test_all_leaves_that_are_not_finite_are_named():
    bad = PARAMS | {"a": PARAMS["a"] * jnp.nan, "b": PARAMS["b"] * jnp.inf}
    with pytest.raises(WeightError, match="'a', 'b'"):
        fc.solve(bad, PAIR)


def test_nothing_is_donated_before_the_weights_are_checked():
    bad = {"a": jnp.ones((2, 3)), "b": jnp.full((3, 2), jnp.nan)}
    with pytest.raises(WeightError):
        fc.equalize(bad, PAIR, donate=True)
    assert not any(leaf.is_deleted() for leaf in bad.values())


def test_under_jit_channels_that_are_not_finite_keep_scale_one():
    bad = {"a": PARAMS["a"].at[1, 1].set(jnp.nan) * 4, "b": PARAMS["b"]}
    scales = jax.jit(lambda params: fc.solve(params, PAIR))(bad)
    assert scales.kept["g"].tolist() == [False, True, False]
    np.testing.assert_allclose(scales["g"], [0.5, 1.0, 0.5])


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        (Spec(), SpecError, "the spec has no groups"),
        (Spec((Group("g", (3,), (Site("c", (1,)),)),)), PathError, "'c', which the tree does not"),
        (Spec((Group("g", (3,), (Site("a", (2,)),)),)), SpecError, r"\(2, 3\), axes \(2,\)"),
        (Spec((Group("g", (4,), (Site("a", (1,)),)),)), SpecError, r"group has shape \(4,\)"),
        (Spec((Group("g", (3,), (Site("n", (0,)),)),)), WeightError, "dtype int32: 'n'"),
    ],
)
def test_specs_that_do_not_fit(spec, error, message):
    scales = Scales.zeros(spec)
    for call in (fc.solve, fc.equalize, lambda tree, spec: fc.apply_scales(tree, scales, spec)):
        with pytest.raises(error, match=message):
            call(PARAMS, spec)


def test_an_unknown_slot():
    slot: Any = "moments"
    with pytest.raises(ConfigError, match=r"'moments'.*params, first_moment, second_moment"):
        fc.apply_scales(PARAMS, Scales.zeros(PAIR), PAIR, slot=slot)


@pytest.mark.parametrize(
    ("log2", "message"),
    [
        ({}, "'g' has shape \\(3,\\), its scales are missing"),
        ({"g": jnp.zeros(2)}, "scales \\(2,\\)"),
    ],
)
def test_scales_of_another_spec(log2, message):
    with pytest.raises(SpecError, match=f"{message}. What to do: solve with the same spec"):
        fc.apply_scales(PARAMS, Scales(log2), PAIR)
