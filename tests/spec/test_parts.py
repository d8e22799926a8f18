"""Parts of a spec: alike ones share what is compiled, and nothing changes but that."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle.errors import WeightError
from flaxcle.paths import named_leaves
from flaxcle.solve import _solve
from flaxcle.spec import parts
from flaxcle.spec.parts import MANY, parts_of

WIDTH = 24  # more candidates than are listed, so that weights are searched


def fn(p: Any, x: jax.Array) -> jax.Array:
    for block in p["blocks"]:
        x = (
            x / (1 + jnp.abs(x))
            + jnp.maximum(x @ block["up"] + block["bias"][None], 0) @ block["down"]
        )
    return x @ p["head"]


def network(depth: int) -> tuple[Any, fc.Spec]:
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape) * 10 ** rng.uniform(-1, 1, shape[-1:]), "f")

    blocks = [
        {"up": drawn(8, WIDTH), "bias": drawn(WIDTH), "down": drawn(WIDTH, 8)} for _ in range(depth)
    ]
    params = {"blocks": blocks, "head": drawn(8, 3)}
    return params, fc.find_spec(fn, params, jnp.ones((2, 8)))


def test_every_group_and_leaf_is_in_one_part():
    params, spec = network(MANY + 1)
    leaves = named_leaves(params)
    found = parts_of(spec, leaves)
    assert len(found) == MANY + 1
    assert len({part.spec for part in found}) == 1
    names = [name for part in found for name in part.groups.values()]
    assert sorted(names) == sorted(group.name for group in spec.groups)
    paths = [path for part in found for path in part.paths.values()]
    assert len(paths) == len(set(paths)) == 3 * (MANY + 1)
    assert [leaf.shape for leaf in found[3].leaves(leaves).values()] == [(8, 24), (24,), (24, 8)]


def test_a_few_alike_parts_stay_together_under_their_own_names():
    params, spec = network(MANY - 1)
    (part,) = parts_of(spec, named_leaves(params))
    assert part.spec.groups == spec.groups
    assert all(own == path for own, path in part.paths.items())


def test_blocks_of_another_shape_stay_in_the_rest():
    params, _ = network(MANY)
    other = {"up": jnp.ones((8, 5)), "bias": jnp.ones(5), "down": jnp.ones((5, 8))}
    params = {**params, "blocks": [*params["blocks"], other]}
    spec = fc.find_spec(fn, params, jnp.ones((2, 8)))
    *alike, rest = parts_of(spec, named_leaves(params))
    assert len(alike) == MANY
    assert set(rest.paths) == {f"blocks/{MANY}/{name}" for name in ("up", "bias", "down")}


def test_the_scales_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch):
    params, spec = network(MANY)
    apart, balanced = fc.solve(params, spec), fc.equalize(params, spec)
    monkeypatch.setattr(parts, "MANY", MANY + 1)
    parts._parts.cache_clear()
    together = fc.solve(params, spec)
    assert list(apart.log2) == list(together.log2)
    for name, log2 in together.log2.items():
        np.testing.assert_allclose(apart.log2[name], log2, atol=2e-3)
        np.testing.assert_array_equal(apart.kept[name], together.kept[name])
    assert float(fc.solve(balanced, spec, max_sweeps=1).residual) <= np.log2(1.001)
    parts._parts.cache_clear()


def test_a_deeper_network_compiles_nothing_more():
    params, spec = network(MANY)
    fc.equalize(params, spec)
    before = _solve._cache_size()
    deeper, spec = network(2 * MANY)
    fc.equalize(deeper, spec)
    assert _solve._cache_size() == before


def test_a_broken_weight_is_named_as_the_user_knows_it():
    params, spec = network(MANY)
    params["blocks"][5]["down"] = params["blocks"][5]["down"].at[2, 3].set(jnp.nan)
    with pytest.raises(WeightError, match="'blocks/5/down'"):
        fc.equalize(params, spec)


def test_jit_gives_the_same_bits():
    params, spec = network(MANY)
    eager, jitted = fc.equalize(params, spec), jax.jit(fc.equalize, static_argnums=1)(params, spec)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)
