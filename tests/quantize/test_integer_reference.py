"""Trap 33: the simulation is what an integer machine computes.

The reference multiplies int8 by int8 into int32, as accelerators do: activations hold q - 128 with
zero point z - 128, the padding is the zero point, and its share of the sum is taken out again.
Both sides round the same numbers, so in float64 their integers must agree without exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import Calibration, QuantConfig, calibrate, fake_quant

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@dataclass
class Quantized:
    """Integers, their scale, and the zero point that they are relative to."""

    q: np.ndarray
    scale: np.ndarray
    zero: float


def stored(x: np.ndarray, low: Any, high: Any, symmetric: bool) -> Quantized:
    """An activation in int8."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    if symmetric:
        scale = max(-low, high) / 127
        return Quantized(np.clip(np.rint(x / scale), -127, 127).astype(np.int8), scale, 0)
    scale = (high - low) / 255
    zero = np.rint(-low / scale) - 128
    return Quantized(np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8), scale, zero)


def stored_weight(w: np.ndarray, axes: tuple[int, ...]) -> Quantized:
    rest = tuple(k for k in range(w.ndim) if k not in axes)
    scale = np.abs(w).max(rest, keepdims=True) / 127
    return Quantized(np.rint(w / scale).astype(np.int8), scale.reshape(-1), 0)


def dense(x: np.ndarray, w: np.ndarray, zero: float) -> np.ndarray:
    total = jax.lax.dot_general(
        jnp.asarray(x),
        jnp.asarray(w),
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    return np.asarray(total) - np.int32(zero) * w.sum(0, np.int32)


def convolution(groups: int) -> Callable[..., np.ndarray]:
    def conv(x: np.ndarray, w: np.ndarray, zero: float) -> np.ndarray:
        pad = [(0, 0), (1, 1), (1, 1), (0, 0)]
        total = jax.lax.conv_general_dilated(
            jnp.asarray(np.pad(x, pad, constant_values=int(zero))),
            jnp.asarray(w),
            (2, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
            preferred_element_type=jnp.int32,
        )
        return np.asarray(total) - np.int32(zero) * w.sum((0, 1, 2), np.int32)

    return conv


def float_layer(groups: int | None) -> Callable[..., jax.Array]:
    """The same layer in float: dense, or a strided convolution."""

    def layer(w: jax.Array, x: jax.Array) -> jax.Array:
        if groups is None:
            return x @ w
        return jax.lax.conv_general_dilated(
            x,
            w,
            (2, 1),
            [(1, 1), (1, 1)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return layer


LAYERS = {
    "dense": (None, (20,), (20, 30)),
    "conv": (1, (8, 7, 4), (3, 3, 4, 6)),
    "depthwise": (4, (8, 7, 4), (3, 3, 1, 4)),
    "depthwise with multiplier": (4, (8, 7, 4), (3, 3, 1, 8)),
    "grouped": (2, (8, 7, 4), (3, 3, 2, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_one_layer(name: str, granularity: Any, symmetric: bool) -> None:
    groups, shape, kernel = LAYERS[name]
    layer = float_layer(groups)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        y = layer(p["w"], x)
        return jax.nn.relu(y + p["b"].reshape((1,) * (y.ndim - 1) + (-1,)))

    x = RNG.normal(0.3, 1.0, (16, *shape))
    params = {"w": RNG.normal(size=kernel), "b": RNG.normal(size=kernel[-1:])}
    config = QuantConfig(weight_granularity=granularity, act_symmetric=symmetric)
    calibration = calibrate(fn, params, [x[:8]], config)
    got = fake_quant(fn, config, calibration)(params, x)

    integer = dense if groups is None else convolution(groups)
    axes = (len(kernel) - 1,) if granularity == "per_channel" else ()
    y = integer_layer(integer, params["w"], axes, stored_input(x, calibration, symmetric))
    y = np.maximum(y + params["b"], 0)
    assert_same_integers(got, y, calibration, symmetric)


def stored_input(x: np.ndarray, calibration: Calibration, symmetric: bool) -> Quantized:
    return stored(x, calibration.low["input_0"], calibration.high["input_0"], symmetric)


def integer_layer(integer: Any, w: np.ndarray, axes: tuple[int, ...], x: Quantized) -> np.ndarray:
    weight = stored_weight(w, axes)
    total = integer(x.q, weight.q, x.zero)
    assert total.dtype == np.int32
    return total * (x.scale * weight.scale)


def assert_same_integers(
    got: Any, want: np.ndarray, calibration: Calibration, symmetric: bool
) -> None:
    low, high = calibration.low["output_0"], calibration.high["output_0"]
    one, two = (stored(np.asarray(y), low, high, symmetric) for y in (got, want))
    np.testing.assert_array_equal(one.q, two.q)
    assert len(np.unique(two.q)) > 50
    back = (two.q.astype(np.float64) - two.zero) * two.scale
    np.testing.assert_allclose(got, back, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_a_network_of_integers(granularity: Any) -> None:
    """Convolution, relu, depthwise, residual add, relu, mean, dense: only integers in between."""
    conv, deep = float_layer(1), float_layer(6)

    def fn(p: Any, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(conv(p["conv"], x) + p["bias"].reshape(1, 1, 1, -1))
        z = jax.nn.relu(deep(p["deep"], y) + y[:, ::2])
        return z.mean((1, 2)) @ p["head"]

    x = RNG.normal(0.3, 1.0, (16, 8, 7, 4))
    params = {
        "conv": RNG.normal(size=(3, 3, 4, 6)),
        "bias": RNG.normal(size=6),
        "deep": RNG.normal(size=(3, 3, 1, 6)),
        "head": RNG.normal(size=(6, 10)),
    }
    config = QuantConfig(weight_granularity=granularity)
    calibration = calibrate(fn, params, [x], config)
    got = fake_quant(fn, config, calibration)(params, x)

    def rounded(y: np.ndarray, name: str) -> Quantized:
        return stored(y, calibration.low[name], calibration.high[name], symmetric=False)

    def back(x: Quantized) -> np.ndarray:
        return (x.q.astype(np.int32) - int(x.zero)) * x.scale

    channels = granularity == "per_channel"
    last = (3,) if channels else ()
    y = integer_layer(convolution(1), params["conv"], last, rounded(x, "input_0"))
    y = np.maximum(y + params["bias"], 0)
    z = integer_layer(convolution(6), params["deep"], last, rounded(y, "deep/input"))
    left, right = (rounded(a, f"add/operand_{k}") for k, a in enumerate((z, y[:, ::2])))
    pooled = np.maximum(back(left) + back(right), 0).mean((1, 2))
    head = (1,) if channels else ()
    out = integer_layer(dense, params["head"], head, rounded(pooled, "head/input"))
    assert_same_integers(got, out, calibration, symmetric=False)
