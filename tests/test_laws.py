"""The laws of equalization, over every network of the zoo that has a declared spec."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flaxcle as fc
from by_hand import apply_table, in_float64, random_log2, widened
from flaxcle.paths import map_named, named_leaves
from flaxcle.spec.table import normal_axes
from zoo import Network, build, networks

FAMILIES = ["mlp", "vgg", "resnet18_folded", "mobilenetv2_folded", "llama_gqa", "mlp_nnx"]
INEXACT = {"op_cube_root_of_cube"}  # XLA's cbrt rounds 8 * x unlike x
WIDE = 2.0**30  # no clamp: these laws hold exactly only inside the bounds
MESHES = (AxisType.Auto, AxisType.Explicit)


class Case(NamedTuple):
    """A network and its declared spec."""

    network: Network
    spec: fc.Spec

    @property
    def params(self) -> Any:
        return self.network.params


@cache
def _case(name: str) -> Case:
    network = build(name)
    return Case(network, fc.Spec.from_pairs(network.pairs, network.params))


@cache
def _scales(name: str) -> fc.Scales:
    return fc.solve(_case(name).params, _case(name).spec)


@pytest.fixture(scope="module", params=[name for name in networks() if build(name).pairs])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def assert_close(one: Any, two: Any, tolerance: float) -> None:
    """Every leaf agrees relative to itself."""
    first, second = named_leaves(one), named_leaves(two)
    assert first.keys() == second.keys()
    for path, leaf in first.items():
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            a, b = np.asarray(leaf, np.float64), np.asarray(second[path], np.float64)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=0, err_msg=path)


def assert_equal(one: Any, two: Any) -> None:
    assert_close(one, two, 0.0)


def test_preserves_the_function(name):
    network, spec = _case(name)
    run = in_float64(network.fn, *network.inputs)
    with jax.enable_x64(True):
        moved = fc.apply_scales(widened(network.params), _scales(name), spec)
    for before, after in zip(run(network.params), run(moved), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9 * np.abs(before).max())


def test_powers_of_two_change_no_bit_of_the_output(name):
    network, spec = _case(name)
    if name in INEXACT:
        pytest.skip("the network itself rounds powers of two")
    run = jax.jit(network.fn)
    scales = fc.solve(network.params, spec, power_of_two=True)
    for log2 in scales.log2.values():
        np.testing.assert_array_equal(log2, np.round(log2))
    after = run(fc.apply_scales(network.params, scales, spec), *network.inputs)
    before = run(network.params, *network.inputs)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_keeps_structure_dtypes_and_untouched_leaves(name):
    network, spec = _case(name)
    after = fc.apply_scales(network.params, _scales(name), spec)
    assert jax.tree.structure(after) == jax.tree.structure(network.params)
    old, new = named_leaves(network.params), named_leaves(after)
    named = {site.path for group in spec.groups for site in group.sites}
    for path, leaf in old.items():
        assert (new[path].dtype, new[path].shape) == (leaf.dtype, leaf.shape)
        assert (new[path] is leaf) == (path not in named)


def test_converges_and_is_idempotent(name):
    network, spec = _case(name)
    scales = _scales(name)
    assert scales.residual <= np.log2(1 + 1e-3)
    again = fc.solve(fc.apply_scales(network.params, scales, spec), spec)
    for log2 in again.log2.values():
        assert np.abs(log2).max() <= 2 * np.log2(1 + 1e-3)


def test_reaches_the_same_point_from_any_start(name):
    network, spec = _case(name)
    if any(kept.any() for kept in _scales(name).kept.values()):
        pytest.skip("channels that a guard keeps stay where they are")
    options = {"tol": 1e-5, "max_scale": WIDE}
    start = map_named(
        lambda path, leaf: jnp.asarray(leaf),
        apply_table(network.params, spec, random_log2(spec)),
    )
    reached = fc.apply_scales(start, fc.solve(start, spec, **options), spec)
    scales = fc.solve(network.params, spec, **options)
    assert_close(reached, fc.apply_scales(network.params, scales, spec), 1e-3)


def test_the_inverse_undoes_it(name):
    network, spec = _case(name)
    scales = _scales(name)
    there = fc.apply_scales(network.params, scales, spec)
    back = fc.apply_scales(there, scales, spec, inverse=True)
    assert_close(back, network.params, 1e-6)


def test_gradients_move_against_params(name):
    """Of `loss(s * p)` the gradient is that of `loss(p)` divided by s."""
    network, spec = _case(name)
    scales = _scales(name)
    ones = jax.tree.map(_ones, network.params)
    up = fc.apply_scales(ones, scales, spec)
    down = fc.apply_scales(ones, scales, spec, slot="first_moment")
    square = fc.apply_scales(ones, scales, spec, slot="second_moment")
    product = jax.tree.map(_product, up, down)
    assert_close(product, ones, 1e-6)
    assert_close(square, jax.tree.map(_product, down, down), 1e-6)


def _ones(leaf: Any) -> Any:
    return jnp.ones_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _product(one: Any, two: Any) -> Any:
    return one * two if jnp.issubdtype(one.dtype, jnp.floating) else one


@pytest.mark.parametrize("family", FAMILIES)
def test_commutes_with_jit_and_traces_once(family):
    network, spec = _case(family)
    traced = []

    def equalize(params: Any, spec: fc.Spec) -> Any:
        traced.append(spec)
        return fc.equalize(params, spec)

    jitted = jax.jit(equalize, static_argnums=1)
    assert_close(jitted(network.params, spec), fc.equalize(network.params, spec), 1e-6)
    jitted(jax.tree.map(_product, network.params, network.params), spec)
    assert len(traced) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_commutes_with_vmap(family):
    network, spec = _case(family)
    other = apply_table(network.params, spec, random_log2(spec))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), network.params, other)
    batched = jax.vmap(lambda params: fc.equalize(params, spec))(both)
    for number, params in enumerate((network.params, other)):
        one = jax.tree.map(lambda leaf, number=number: leaf[number], batched)
        assert_close(one, fc.equalize(jax.tree.map(jnp.asarray, params), spec), 1e-5)


@pytest.mark.parametrize("axis_type", MESHES, ids=("auto", "explicit"))
@pytest.mark.parametrize("family", FAMILIES)
def test_commutes_with_sharding(family, axis_type):
    network, spec = _case(family)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(axis_type,) * 2)
    sharded = jax.tree.map(lambda leaf: _shard(leaf, mesh), network.params)
    assert not all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(sharded))
    moved = fc.equalize(sharded, spec)
    assert_equal(moved, fc.equalize(network.params, spec))
    for one, two in zip(jax.tree.leaves(moved), jax.tree.leaves(sharded), strict=True):
        assert one.sharding.is_equivalent_to(two.sharding, one.ndim)


def _shard(leaf: Any, mesh: Any) -> Any:
    """Cuts the last axes that the mesh divides."""
    names = [None] * leaf.ndim
    for axis in reversed(range(leaf.ndim)):
        free = [
            n for n in ("model", "data") if n not in names and leaf.shape[axis] % mesh.shape[n] == 0
        ]
        names[axis] = free[0] if free else None
    return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*names)))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("family", FAMILIES)
def test_finite_weights_stay_finite(family, dtype):
    """Weights up to the largest number of the dtype, zeros and subnormal numbers."""
    network, spec = _case(family)
    rng = np.random.default_rng(0)
    limits = jnp.finfo(dtype)
    octaves = np.log2([float(limits.tiny), float(limits.max)])

    def wild(leaf: Any) -> Any:
        values = np.exp2(rng.uniform(octaves[0] - 3, octaves[1], leaf.shape))
        values *= rng.choice([-1, 0, 1], leaf.shape)
        return jnp.asarray(np.clip(values, -float(limits.max), float(limits.max)), dtype)

    params = jax.tree.map(wild, network.params)
    for leaf in jax.tree.leaves(fc.equalize(params, spec, max_scale=WIDE)):
        assert leaf.dtype == dtype
        assert bool(jnp.isfinite(leaf).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_ranges_are_balanced_where_no_guard_acts(family):
    """Read anew in NumPy: producers and consumers of a pair have one range a channel."""
    network, spec = _case(family)
    after = named_leaves(fc.equalize(network.params, spec, tol=1e-5))
    for group in spec.groups:
        kernels = [site for site in group.sites if np.ndim(after[site.path]) > 1]
        if [site.power for site in kernels] == [1, -1] and not any(site.index for site in kernels):
            made, read = (_range(after[site.path], site) for site in kernels)
            np.testing.assert_allclose(made, read, rtol=1e-3)


def _range(leaf: Any, site: fc.Site) -> np.ndarray:
    rest = tuple(set(range(np.ndim(leaf))) - set(normal_axes(site, np.ndim(leaf))))
    return np.abs(np.asarray(leaf)).max(rest)
