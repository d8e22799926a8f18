"""The core of a leaf, against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.ranges import TAPS, core_of, filled_after


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


@pytest.mark.parametrize("number", [0.0, -3e38, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    ("value", "dtype"), [(0, np.uint16), (0, np.float32), (-np.inf, np.float32)]
)
def test_the_number_before_does_not_change_what_is_filled_in(number, value, dtype):
    filled = filled_after(jnp.float32(number), (2, 3), value, dtype)
    assert filled.dtype == dtype
    np.testing.assert_array_equal(filled, np.full((2, 3), value, dtype))
