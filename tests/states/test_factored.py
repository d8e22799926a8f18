"""Factored second moments: which means they are, exact factors and the rule for the others."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax_cases import CASES, Case, column, fed, history
from small_net import FACTORS, PARAMS, SCALES, SPEC, assert_same, drawn

import flaxcle as fc
from flaxcle import Site


def test_factored_moments_follow_the_rule() -> None:
    """The estimate of every entry is divided by s**2, and means along unscaled axes are exact."""
    state = fed(CASES["adafactor"])(*history("of full rank"))
    new = fc.rescale_opt_state(state, PARAMS, SCALES, SPEC)
    for name, exact in (("a", "v_row"), ("b", "v_col")):
        before, after = (estimate(one[0], name) for one in (state, new))
        factor = FACTORS[name]["kernel"] ** -2
        np.testing.assert_allclose(after, before * factor, rtol=1e-6)
        mean = {"v_row": 0, "v_col": 1}[exact]
        assert_same(
            getattr(new[0], exact)[name]["kernel"],
            getattr(state[0], exact)[name]["kernel"] * factor.mean(mean),
        )


def estimate(state: Any, name: str) -> jax.Array:
    """The second moment that Adafactor works with; the larger axis of both kernels is the first."""
    row, column = state.v_row[name]["kernel"], state.v_col[name]["kernel"]
    return row[None, :] * column[:, None] / row.mean()


def test_factored_kernels_of_every_shape() -> None:
    """Square, with a third axis, with an axis of size one; and what looks like a placeholder."""
    shapes = {"square": (4, 4), "conv": (3, 4, 5), "one": (6, 1), "unit": (1,)}
    sites = {
        "s": (Site("square", (0,)), Site("conv", (1,), -1)),
        "t": (Site("conv", (0,)), Site("one", (0,), -1, np.array([0, 0, 1, 1, 2, 2]))),
        "u": (Site("unit", (0,)), Site("one", (1,), 2), Site("square", (1,), -1, np.zeros(4, int))),
    }
    sizes = {"s": 4, "t": 3, "u": 1}
    spec = fc.Spec(tuple(fc.Group(name, (sizes[name],), sites[name]) for name in sites))
    scales = fc.Scales(
        {name: jnp.arange(size, dtype=jnp.float32) - 1.0 for name, size in sizes.items()}
    )
    run = fed(Case(optax.scale_by_factored_rms(min_dim_size_to_factor=1), set()))
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    grads = {name: product(leaf) for name, leaf in drawn("factored", shapes).items()}
    divided = fc.apply_scales(grads, scales, spec, slot="first_moment")
    state, expected = (run([params] * 2, [seen] * 2) for seen in (grads, divided))
    rescaled = fc.rescale_opt_state(state, params, scales, spec, strict=True)
    assert_same(rescaled, expected, rtol=1e-6)
    assert column(fc.opt_state_slots(state, params), "untouched") == {
        "count",
        "v_row/unit",
        "v_col/unit",
        "v/square",
        "v/conv",
        "v/one",
    }


def product(leaf: jax.Array) -> jax.Array:
    """Of rank one along the last two axes."""
    return leaf if leaf.ndim == 1 else leaf[..., :1] * leaf[..., :1, :]
