"""Ranges of weights: by observer, per tensor and per channel, against NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import QuantConfig
from flaxcle.quantize.grid import make_grid, snap
from flaxcle.quantize.weights import snap_weight

RNG = np.random.default_rng(0)
WEIGHTS = {
    "normal": RNG.normal(size=(40, 6)),
    "heavy tails": RNG.standard_t(2, size=(40, 6)),
    "positive": RNG.gamma(2.0, size=(40, 6)),
    "nine taps": RNG.normal(size=(3, 3, 1, 8)),
    "on the grid": np.linspace(-127, 127, 240).round().reshape(40, 6),
    "zero": np.zeros((40, 6)),
    "one dead channel": RNG.normal(size=(40, 6)) * np.array([0, 1, 1, 1, 1, 1]),
}


def configured(**options: Any) -> QuantConfig:
    return QuantConfig(**{"weight_bits": 4, "percentile": 90.0} | options)


def rows_of(w: np.ndarray, config: QuantConfig) -> list[np.ndarray]:
    return list(w.reshape(-1, w.shape[-1]).T) if config.weight_granularity != "per_tensor" else [w]


def error_of(w: np.ndarray, config: QuantConfig) -> np.ndarray:
    """The squared error, in total or per channel."""
    out = np.asarray(snap_weight(jnp.asarray(w, jnp.float32), config, (w.ndim - 1,)), np.float64)
    return np.array([(row**2).sum() for row in rows_of(out - w.astype(np.float32), config)])


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("observer", ["minmax", "percentile"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_range_equals_numpys(name: str, observer: Any, granularity: Any, symmetric: bool) -> None:
    config = configured(
        weight_observer=observer, weight_granularity=granularity, weight_symmetric=symmetric
    )
    w = WEIGHTS[name].astype(np.float32)
    tail = 0.0 if observer == "minmax" else 5.0
    got = np.asarray(snap_weight(jnp.asarray(w), config, (w.ndim - 1,)))
    for row, out in zip(rows_of(w, config), rows_of(got, config), strict=True):
        low, high = (jnp.float32(np.percentile(row, q)) for q in (tail, 100 - tail))
        want = snap(jnp.asarray(row), make_grid(low, high, 4, symmetric=symmetric))
        np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_never_worse_than_minmax(
    name: str, bits: int, granularity: Any, symmetric: bool
) -> None:
    options = {
        "weight_bits": bits,
        "weight_granularity": granularity,
        "weight_symmetric": symmetric,
    }
    plain = error_of(WEIGHTS[name], configured(**options))
    best = error_of(WEIGHTS[name], configured(weight_observer="mse", **options))
    assert (best <= plain * (1 + 1e-6)).all()


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_an_outlier_is_clipped(observer: Any) -> None:
    w = np.append(np.random.default_rng(1).normal(size=4999), 12.0)[:, None]
    plain = error_of(w, configured())
    assert error_of(w, configured(weight_observer=observer, percentile=99.9)) < 0.2 * plain


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_channels_are_independent(observer: Any) -> None:
    config = configured(weight_observer=observer, weight_granularity="per_channel")
    w = jnp.asarray(WEIGHTS["nine taps"], jnp.float32)
    spread = jnp.exp2(jnp.arange(8.0))[None, None, None]
    got = snap_weight(w * spread, config, (3,))
    np.testing.assert_array_equal(got, snap_weight(w, config, (3,)) * spread)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_joint_channel_axes(axes: tuple[int, ...]) -> None:
    config = configured(weight_granularity="per_channel")
    w = RNG.normal(size=(5, 3, 4)).astype(np.float32)
    got = np.asarray(snap_weight(jnp.asarray(w), config, axes))
    rest = tuple(k for k in range(3) if k not in axes)
    top = np.abs(w).max(rest, keepdims=True) / 7
    np.testing.assert_allclose(got, np.rint(w / top) * top, rtol=1e-5, atol=1e-6)


def test_without_bits_the_weight_stays() -> None:
    w = jnp.asarray(WEIGHTS["normal"], jnp.float32)
    assert snap_weight(w, QuantConfig(weight_bits=None), ()) is w


@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_dtype_is_kept_and_gradients_pass(observer: Any, dtype: Any) -> None:
    config = configured(weight_observer=observer, percentile=100.0)
    w = jnp.asarray(WEIGHTS["normal"], dtype)
    out, pull = jax.vjp(lambda w: snap_weight(w, config, ()), w)
    assert out.dtype == dtype
    (grad,) = pull(jnp.ones_like(w))
    assert set(np.unique(grad.astype(jnp.float32))) <= {0.0, 1.0}
    assert (grad == 1).mean() > 0.9
