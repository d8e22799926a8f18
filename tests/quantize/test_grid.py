"""Laws of integer grids, for every width and dtype."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxcle.quantize.grid import Grid, make_grid, snap

BITS = [2, 3, 4, 5, 8, 12, 16]
RANGES = [
    (-1.0, 1.0),
    (-0.3, 2.5),
    (0.0, 6.0),
    (0.5, 2.0),
    (-4.0, 0.0),
    (-3.0, -1.0),
    (-1e-30, 1e20),
]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
KINDS = pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])


@pytest.fixture(autouse=True)
def _wide() -> Any:
    with jax.enable_x64(True):
        yield


def grid_of(low: float, high: float, bits: int, symmetric: bool) -> Grid:
    return make_grid(jnp.asarray(low), jnp.asarray(high), bits, symmetric=symmetric)


def ends(grid: Grid) -> tuple[float, float]:
    return tuple(float((q - grid.zero) * grid.scale) for q in (grid.lowest, grid.highest))


@KINDS
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("limits", RANGES)
def test_zero_is_exact_and_inside(limits: tuple[float, float], bits: int, symmetric: bool) -> None:
    grid = grid_of(*limits, bits, symmetric)
    assert grid.lowest <= float(grid.zero) <= grid.highest
    assert float(grid.zero) == round(float(grid.zero))
    assert float(snap(jnp.zeros(()), grid)) == 0.0


@pytest.mark.parametrize("bits", range(2, 17))
def test_number_of_steps(bits: int) -> None:
    for symmetric, steps in ((True, 2**bits - 2), (False, 2**bits - 1)):
        grid = grid_of(-0.7, 1.0, bits, symmetric)
        assert grid.highest - grid.lowest == steps
        x = jnp.linspace(*ends(grid), steps + 1)
        assert len(np.unique(snap(x, grid))) == steps + 1


@KINDS
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("limits", RANGES)
def test_error_is_at_most_half_a_step(
    limits: tuple[float, float], bits: int, symmetric: bool
) -> None:
    grid = grid_of(*limits, bits, symmetric)
    low, high = ends(grid)
    half = float(grid.scale) / 2 * (1 + 1e-9)
    assert low <= min(limits[0], 0) + half
    assert high >= max(limits[1], 0) - half
    x = np.random.default_rng(bits).uniform(low, high, 1000)
    error = np.abs(snap(jnp.asarray(x), grid) - x)
    assert 0.6 * half < error.max() <= half


@KINDS
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_snapping_is_idempotent(bits: int, symmetric: bool, dtype: Any) -> None:
    grid = grid_of(-0.3, 2.5, bits, symmetric)
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000), dtype)
    once = snap(x, grid)
    assert once.dtype == dtype
    np.testing.assert_array_equal(snap(once, grid), once)


@KINDS
@pytest.mark.parametrize("bits", BITS)
def test_equals_the_textbook_in_numpy(bits: int, symmetric: bool) -> None:
    x = np.random.default_rng(1).normal(size=1000)
    low, high = -1.1, 2.3
    if symmetric:
        scale, zero, least, most = high / (2 ** (bits - 1) - 1), 0, 1 - 2 ** (bits - 1), None
        most = -least
    else:
        scale = (high - low) / (2**bits - 1)
        zero, least, most = np.rint(-low / scale), 0, 2**bits - 1
    want = (np.clip(np.rint(x / scale) + zero, least, most) - zero) * scale
    got = snap(jnp.asarray(x), grid_of(low, high, bits, symmetric))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


@KINDS
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_the_wide_result_rounded_once(symmetric: bool, dtype: Any) -> None:
    grid = grid_of(-0.3, 2.5, 8, symmetric)
    x = jnp.asarray(np.random.default_rng(2).normal(size=1000), dtype)
    wide = snap(x.astype(jnp.float32), grid)
    got = snap(x, grid)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, wide.astype(dtype))


@KINDS
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, -0.0, 3.7, -3.7, 1e-30])
def test_constant_tensors_are_exact(value: float, bits: int, symmetric: bool) -> None:
    """Trap 34: minimum and maximum coincide."""
    grid = grid_of(value, value, bits, symmetric)
    assert np.isfinite([grid.scale, grid.zero]).all()
    np.testing.assert_allclose(snap(jnp.full(3, value), grid), value, rtol=1e-12)


@KINDS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_steps_that_are_no_normal_numbers_round_to_zero(symmetric: bool, dtype: Any) -> None:
    tiny = jnp.finfo(dtype).tiny * jnp.asarray([1.5, -3], dtype)
    grid = make_grid(tiny.min(), tiny.max(), 8, symmetric=symmetric)
    assert np.isfinite([grid.scale, grid.zero]).all()
    np.testing.assert_array_equal(snap(tiny, grid), 0)


@KINDS
@given(
    limits=st.tuples(FLOATS, FLOATS).map(sorted),
    x=FLOATS,
    bits=st.integers(2, 16),
)
@settings(deadline=None, max_examples=60)
def test_any_range_gives_a_finite_value_of_the_grid(
    limits: list[float], x: float, bits: int, symmetric: bool
) -> None:
    limits32 = [jnp.asarray(v, jnp.float32) for v in limits]
    grid = make_grid(*limits32, bits, symmetric=symmetric)
    got = float(snap(jnp.asarray(x, jnp.float32), grid))
    low, high = ends(grid)
    slack = 1e-5 * max(-low, high)
    assert low - slack <= got <= high + slack
    if low <= x <= high:
        assert abs(got - x) <= float(grid.scale) / 2 + slack


@KINDS
def test_gradient_is_one_inside_and_zero_outside(symmetric: bool) -> None:
    grid = grid_of(-1.0, 3.0, 4, symmetric)
    low, high = ends(grid)
    step = float(grid.scale)
    inside = np.array([low, low + 0.3 * step, 0.0, 0.1, high - 0.2 * step, high])
    outside = np.array([low - 0.6 * step, high + 0.6 * step, -1e6, 1e6])
    grad = jax.jit(jax.grad(lambda x: snap(x, grid).sum()))
    np.testing.assert_array_equal(grad(jnp.asarray(inside)), 1)
    np.testing.assert_array_equal(grad(jnp.asarray(outside)), 0)
    rows = jnp.asarray([inside, inside - 1e6])
    np.testing.assert_array_equal(jax.vmap(grad)(rows), [[1] * 6, [0] * 6])


def slopes_by_hand(x: float, low: float, high: float, symmetric: bool) -> tuple[float, float]:
    """d snap(x) / d (low, high) for 4 bits; `rest` is what rounding did to the zero point."""
    steps = 7 if symmetric else 15
    s = max(-low, high) / steps if symmetric else (high - low) / steps
    zero = 0 if symmetric else round(-low / s)
    rest, least, most = zero + low / s, -7 if symmetric else 0, steps
    q = round(x / s) + zero
    if symmetric:  # Esser et al. 2020, eq. 3, and the chain rule through s
        by_scale = round(x / s) - x / s if least <= q <= most else min(max(q, least), most)
        return (-by_scale / steps, 0) if -low > high else (0, by_scale / steps)
    if least <= q <= most:
        slope = (round(x / s) - x / s) / steps
        return -slope, slope
    return (1 + rest / steps, -rest / steps) if q < least else (rest / steps, 1 - rest / steps)


@KINDS
@pytest.mark.parametrize("limits", [(-1.0, 2.0), (-3.1, 0.7), (-0.01, 5.0)])
def test_the_ends_of_the_range_get_the_gradient_of_lsq(
    limits: tuple[float, float], symmetric: bool
) -> None:
    low, high = map(jnp.asarray, limits)
    x = np.random.default_rng(3).normal(size=300) * 3

    def one(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
        return snap(x, make_grid(low, high, 4, symmetric=symmetric))

    slopes = jax.vmap(jax.grad(one, (1, 2)), (0, None, None))
    got = np.stack(slopes(jnp.asarray(x), low, high), -1)
    want = [slopes_by_hand(v, *limits, symmetric) for v in x]
    np.testing.assert_allclose(got, want, atol=1e-12)
    assert 20 < np.sum(np.abs(got).max(-1) > 0.9) < 280, "some are clipped, some are not"


@KINDS
def test_both_modes_of_differentiation_agree_on_the_range(symmetric: bool) -> None:
    x = jnp.asarray(np.random.default_rng(4).normal(size=40))

    def rounded(low: jax.Array, high: jax.Array) -> jax.Array:
        return snap(x, make_grid(low, high, 4, symmetric=symmetric))

    ends = jnp.asarray(-0.9), jnp.asarray(1.2)
    forward, backward = jax.jacfwd(rounded, (0, 1))(*ends), jax.jacrev(rounded, (0, 1))(*ends)
    np.testing.assert_allclose(forward, backward, rtol=1e-12)


@KINDS
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.0), (-2.0, 0.0), (0.5, 2.0), (0.0, 0.0)])
def test_an_end_at_zero_or_beyond_stays(low: float, high: float, symmetric: bool) -> None:
    x = jnp.linspace(-3, 3, 50)

    def total(low: jax.Array, high: jax.Array) -> jax.Array:
        return (snap(x, make_grid(low, high, 4, symmetric=symmetric)) ** 2).sum()

    at_low, at_high = jax.grad(total, (0, 1))(jnp.asarray(low), jnp.asarray(high))
    assert (at_low != 0) == (low < 0)
    assert (at_high != 0) == (high > 0)


def test_one_scale_per_channel_broadcasts() -> None:
    x = jnp.asarray([[0.1, 10.0], [-0.06, 20.0]])
    grid = make_grid(x.min(0, keepdims=True), x.max(0, keepdims=True), 8, symmetric=True)
    for k in range(2):
        alone = make_grid(x[:, k].min(), x[:, k].max(), 8, symmetric=True)
        np.testing.assert_allclose(snap(x, grid)[:, k], snap(x[:, k], alone), rtol=1e-12)
