"""Every network builds, runs and is what it says, so that other tests may take that for granted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import Network, build, networks


@pytest.fixture(scope="module", params=list(networks()))
def network(request: pytest.FixtureRequest) -> Network:
    return build(request.param)


def test_params_are_finite_and_float32(network: Network) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(network.params):
        assert np.isfinite(leaf).all(), path
        assert not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.dtype == jnp.float32, path


def test_output_has_stated_shapes_and_depends_on_input(network: Network) -> None:
    run = jax.jit(network.fn)
    out = jax.tree.leaves(run(network.params, *network.inputs))
    assert tuple(leaf.shape for leaf in out) == network.shapes
    other = jax.tree.leaves(run(network.params, *(x[::-1, ::-1] for x in network.inputs)))
    assert all(np.isfinite(leaf).all() for leaf in out)
    assert any(not np.array_equal(a, b) for a, b in zip(out, other, strict=True))


def test_traces_in_float64_without_a_float32_cast(network: Network) -> None:
    with jax.enable_x64(True):
        params, inputs = jax.tree.map(_double, (network.params, network.inputs))
        jaxpr = str(jax.make_jaxpr(network.fn)(params, *inputs))
    assert "f64[" in jaxpr
    assert "f32" not in jaxpr


def test_declared_names_are_modules_of_the_network(network: Network) -> None:
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(network.params)
    ]
    for name in _names((network.pairs, network.illegal)):
        assert any(f"/{name}/" in f"/{path}/" for path in paths), name


def _double(x: jax.Array) -> jax.ShapeDtypeStruct:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(x.shape, jnp.float64 if floating else x.dtype)


def _names(chains: object) -> list[str]:
    if isinstance(chains, str):
        return [chains.partition("[")[0]]  # a suffix tells axes
    return [name for part in chains or () for name in _names(part)]  # type: ignore[attr-defined]
