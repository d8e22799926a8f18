"""The maximum of each row and the position at which it stands, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.solve import maxima
from flaxcle.solve.maxima import STRIDE, scaled_maximum, where_maximum


def core_and_factors() -> tuple[np.ndarray, list]:
    """Rows of all magnitudes, of zeros, of equals, of neighbours in float32 and of infinities."""
    rng = np.random.default_rng(0)
    core = rng.normal(size=(9, 5, 8)).astype(np.float32)
    core *= np.exp2(np.linspace(-100, 120, 9, dtype=np.float32)).reshape(9, 1, 1)
    core[3] = 0
    core[4] = -1.5
    core[5] = np.nextafter(np.float32(2), np.float32(1))
    core[5, 2, 3] = 2
    core[6, 1, 1] = np.inf
    factors = np.exp2(rng.integers(-1, 2, (5, 8))).astype(np.float32)
    factors[:, :] = np.where(np.arange(8) < 5, factors, 1)
    return core, [((1, 2), jnp.asarray(factors.ravel()))]


@pytest.mark.parametrize("exact", [2**24, 4], ids=("floats", "integers"))
@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1), (2,)])
def test_position_of_the_maximum(axes, exact, monkeypatch):
    monkeypatch.setattr(maxima, "EXACT", exact)
    core, factors = core_and_factors()
    if 0 not in axes:
        core = core[:6]
    rest = tuple(axis for axis in range(3) if axis not in axes)
    best = scaled_maximum(jnp.asarray(core), factors, axes)
    at = where_maximum(jnp.asarray(core), factors, axes, best)
    product = np.abs(core * np.asarray(factors[0][1]).reshape(1, 5, 8))
    flat = product.transpose(*axes, *rest).reshape(best.size, -1)
    np.testing.assert_array_equal(best, flat.max(1))
    finite = np.isfinite(flat.max(1))
    assert finite.any()
    last = flat.shape[1] - 1 - np.argmax(flat[:, ::-1] == flat.max(1, keepdims=True), axis=1)
    np.testing.assert_array_equal(np.asarray(at)[finite], last[finite])
    assert np.all((at >= 0) & (at < flat.shape[1]))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("slices", [STRIDE, 2 * STRIDE, 2 * STRIDE + 5])
def test_walking_gives_the_same_bits(slices, axis, monkeypatch):
    """Equals are among the slices, a row of zeros, NaN and infinity."""
    rng = np.random.default_rng(slices)
    values = rng.integers(-9, 9, (slices, 4, 6)).astype(np.float32)
    values[:, 1, 2] = 0
    values[1, 2, 3], values[2, 3, 4] = np.nan, np.inf
    core = jnp.asarray(np.moveaxis(values, 0, axis))
    axes = tuple({0, 1, 2} - {axis})
    factors = [
        ((axis,), jnp.asarray(rng.uniform(0.1, 9, slices), jnp.float32)),
        ((axis, 2), jnp.asarray(rng.uniform(0.1, 9, slices * 6), jnp.float32)),
    ]

    def both() -> tuple[jax.Array, jax.Array]:
        best = scaled_maximum(core, factors, axes)
        return best, where_maximum(core, factors, axes, best)

    whole = both()
    monkeypatch.setattr(maxima, "WALKED", 0)
    assert "platform_index" in str(jax.make_jaxpr(both)())
    for expected, found in zip(whole, both(), strict=True):
        np.testing.assert_array_equal(expected, found)
        assert expected.dtype == found.dtype


def test_small_cores_last_axes_other_dtypes_and_meshes_are_not_walked(monkeypatch):
    def primitives(shape: tuple[int, ...], axes: tuple[int, ...], **options) -> str:
        core = jnp.ones(shape, **options)
        return str(jax.make_jaxpr(lambda core: scaled_maximum(core, (), axes))(core))

    assert "platform_index" not in primitives((40, 6), (1,))
    monkeypatch.setattr(maxima, "WALKED", 0)
    assert "platform_index" in primitives((40, 6), (1,))
    assert "platform_index" not in primitives((40, 6), (0,))
    assert "platform_index" not in primitives((40, 6), (1,), dtype=jnp.bfloat16)
    mesh = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Explicit,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None))
    assert "platform_index" not in primitives((40, 6), (1,), device=cut)
