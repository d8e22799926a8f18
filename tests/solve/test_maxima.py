"""The maximum of each row and the position at which it stands, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.solve import maxima
from flaxcle.solve.maxima import Rows, joined, peaks_of, positions_of


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
    rows = Rows(axes, factors)
    (peaks,) = peaks_of(jnp.asarray(core), [rows])
    best = peaks.value
    at = np.asarray(joined([positions_of(jnp.asarray(core), rows, peaks)], best))
    product = np.abs(core * np.asarray(factors[0][1]).reshape(1, 5, 8))
    flat = product.transpose(*axes, *rest).reshape(best.size, -1)
    np.testing.assert_array_equal(best, flat.max(1))
    finite = np.isfinite(flat.max(1))
    assert finite.any()
    last = flat.shape[1] - 1 - np.argmax(flat[:, ::-1] == flat.max(1, keepdims=True), axis=1)
    np.testing.assert_array_equal(at[finite], last[finite])
    assert np.all((at >= 0) & (at < flat.shape[1]))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("slices", [30, 32, 37])
@pytest.mark.parametrize("tile", [1, 24 * 5, 24 * 16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_tiles_give_the_same_bits(dtype, slices, axis, tile, monkeypatch):
    """Equals are among the slices, a row of zeros, NaN and infinity."""
    rng = np.random.default_rng(slices)
    values = rng.integers(-9, 9, (slices, 4, 6)).astype(np.float32)
    values[:, 1, 2] = 0
    values[1, 2, 3], values[2, 3, 4] = np.nan, np.inf
    core = jnp.asarray(np.moveaxis(values, 0, axis), dtype)
    other = 1 - axis
    of_slices = jnp.asarray(rng.uniform(0.1, 9, slices), jnp.float32)
    of_columns = jnp.asarray(rng.uniform(0.1, 9, slices * 6), jnp.float32)
    asked = [
        Rows((other, 2), [((axis,), of_slices), ((axis, 2), of_columns)]),
        Rows((axis,), [((2,), of_columns[:6])]),
        Rows((0, 1)),
        Rows((0, 1, 2), [((axis,), of_slices)]),
    ]

    def found() -> list[tuple[jax.Array, jax.Array]]:
        peaks = peaks_of(core, asked)
        at = [positions_of(core, rows, one) for rows, one in zip(asked, peaks, strict=True)]
        return [(one.value, joined([p], one.value)) for p, one in zip(at, peaks, strict=True)]

    whole = found()
    monkeypatch.setattr(maxima, "TILED", 0)
    monkeypatch.setattr(maxima, "TILE", tile)
    assert "platform_index" in str(jax.make_jaxpr(found)())
    for expected, tiled in zip(jax.tree.leaves(whole), jax.tree.leaves(found()), strict=True):
        np.testing.assert_array_equal(expected, tiled)
        assert expected.dtype == tiled.dtype


def test_small_cores_vectors_and_meshes_are_reduced_as_a_whole(monkeypatch):
    def program(shape: tuple[int, ...], **options) -> str:
        core = jnp.ones(shape, **options)
        return str(jax.make_jaxpr(lambda core: peaks_of(core, [Rows((0,))])[0].value)(core))

    assert "platform_index" not in program((40, 6))
    monkeypatch.setattr(maxima, "TILED", 0)
    assert "platform_index" not in program((40, 6))
    monkeypatch.setattr(maxima, "TILE", 6 * 8)
    assert "platform_index" in program((40, 6))
    assert "platform_index" not in program((40,))
    mesh = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Explicit,))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None))
    assert "platform_index" not in program((40, 6), device=cut)
