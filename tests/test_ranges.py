"""The maximum of each channel and the position at which it stands, against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import ranges
from flaxcle.ranges import TAPS, core_of, scaled_maximum, where_maximum


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
    monkeypatch.setattr(ranges, "EXACT", exact)
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


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 3, 4, 6), (2, 3)),
        ((5, 5, 1, 7), (3,)),
        ((1, TAPS, 4, 6), (2, 3)),
        ((TAPS + 1, 4, 6), (1, 2)),
        ((1, 1, 4, 6), (2, 3)),
        ((3, 3, 4, 6), (3,)),
        ((3, 4, 6), (0, 2)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_core_is_the_largest_magnitude(shape, axes, dtype):
    leaf = jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)
    leaf = leaf.at[(0,) * leaf.ndim].set(jnp.nan).at[(-1,) * leaf.ndim].set(-jnp.inf)
    rest = tuple(axis for axis in range(leaf.ndim) if axis not in axes)
    expected = np.abs(np.asarray(leaf, np.float32)).max(rest)
    core = core_of(leaf, axes)
    assert core.dtype == leaf.dtype
    np.testing.assert_array_equal(np.abs(np.asarray(core, np.float32)), expected)
