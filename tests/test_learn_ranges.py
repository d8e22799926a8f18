"""Learned ranges: never worse over the data, better where a tensor has outliers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcle import Calibration, QuantConfig, calibrate, fake_quant, learn_ranges
from flaxcle.bias.empirical import corrected_run, reference_run
from flaxcle.errors import CalibrationError, ConfigError
from flaxcle.jaxpr import trace
from flaxcle.paths import squared_error
from flaxcle.quantize.fake import ranges_of
from flaxcle.quantize.plan import make_plan
from zoo import build

RNG = np.random.default_rng(0)
A4 = QuantConfig(weight_bits=None, act_bits=4)


def heavy(*shape: int) -> jax.Array:
    """Values of which few are far out."""
    return jnp.asarray(RNG.standard_t(3, shape), jnp.float32)


DATA = [heavy(64, 6), heavy(64, 6)]
PARAMS = {"a": heavy(6, 8) / 4, "b": heavy(8, 3) / 4}


def mlp(p: Any, x: jax.Array) -> jax.Array:
    return jnp.maximum(x @ p["a"], 0) @ p["b"]


def looped(p: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p)[0]


def error(fn: Callable[..., Any], params: Any, ranges: Calibration, config: QuantConfig) -> float:
    quantized = jax.jit(fake_quant(fn, config, ranges))
    return sum(float(jnp.sum((quantized(params, x) - fn(params, x)) ** 2)) for x in DATA)


@pytest.mark.parametrize("config", [A4, QuantConfig(weight_bits=4, act_bits=3, act_symmetric=True)])
def test_outliers_are_clipped_and_the_error_falls(config: QuantConfig) -> None:
    start = calibrate(mlp, PARAMS, DATA, config)
    learned = learn_ranges(mlp, PARAMS, DATA, config, start)
    assert error(mlp, PARAMS, learned, config) < 0.8 * error(mlp, PARAMS, start, config)
    assert learned.high["input_0"] < start.high["input_0"]


def test_every_turn_of_a_loop_has_ranges_of_its_own() -> None:
    params = jnp.stack([heavy(6, 6), heavy(6, 6) / 8])
    start = calibrate(looped, params, DATA, A4)
    learned = learn_ranges(looped, params, DATA, A4, start)
    assert error(looped, params, learned, A4) < error(looped, params, start, A4)
    ratios = [learned.high[name] / start.high[name] for name in start.high]
    assert any(ratio.shape == (2,) and ratio[0] != ratio[1] for ratio in ratios)


def test_only_ends_move_and_those_at_zero_stay() -> None:
    start = calibrate(mlp, PARAMS, DATA, A4)
    before = jax.tree.map(np.asarray, start)
    learned = learn_ranges(mlp, PARAMS, DATA, A4, start, steps=10)
    jax.tree.map(np.testing.assert_array_equal, start, before)
    same = replace(learned, low=start.low, high=start.high)
    jax.tree.map(np.testing.assert_array_equal, same, start)
    behind_relu = [name for name, low in start.low.items() if low == 0]
    assert behind_relu
    assert all(learned.low[name] == 0 for name in behind_relu)
    assert all(learned.high[name].dtype == end.dtype for name, end in start.high.items())


def test_a_descent_that_diverges_gives_back_the_start() -> None:
    start = calibrate(mlp, PARAMS, DATA, A4)
    learned = learn_ranges(mlp, PARAMS, DATA, A4, start, optimizer=optax.sgd(1e6), steps=4)
    jax.tree.map(np.testing.assert_array_equal, learned, start)


def test_no_step_changes_nothing() -> None:
    start = calibrate(mlp, PARAMS, DATA, A4)
    learned = learn_ranges(mlp, PARAMS, DATA, A4, start, steps=0)
    jax.tree.map(np.testing.assert_array_equal, learned, start)


def test_the_error_counts_what_corrected_biases_leave() -> None:
    """Clipping half of a tensor moves its mean; with a bias behind it that costs less."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.maximum(x, 0) @ p["w"] + p["b"][None]

    params, config = {"w": jnp.ones((6, 1)), "b": jnp.zeros(1)}, replace(A4, act_bits=2)
    start = calibrate(fn, params, DATA, config)
    learned = learn_ranges(fn, params, DATA, config, start)

    def left(ranges: Calibration) -> float:
        outs = [jax.jit(fake_quant(fn, config, ranges))(params, x) - fn(params, x) for x in DATA]
        return sum(float(jnp.sum((out - out.mean(0, keepdims=True)) ** 2)) for out in outs)

    assert left(learned) < 0.8 * left(start)


def test_the_float_params_are_the_reference_of_rounded_ones() -> None:
    rounded = jax.tree.map(lambda w: jnp.round(2 * w) / 2, PARAMS)
    start = calibrate(mlp, PARAMS, DATA, A4)
    own, floats = (
        learn_ranges(mlp, rounded, DATA, A4, start, reference=reference)
        for reference in (None, PARAMS)
    )
    quantized = [jax.jit(fake_quant(mlp, A4, ranges)) for ranges in (own, floats)]
    wrong, right = (
        sum(float(jnp.sum((run(rounded, x) - mlp(PARAMS, x)) ** 2)) for x in DATA)
        for run in quantized
    )
    assert right < wrong


@pytest.mark.slow
def test_a_network_never_loses_by_the_measure_of_the_descent() -> None:
    network, config = build("unet"), QuantConfig(weight_bits=8, act_bits=5)
    x = network.inputs[0]
    data = [jnp.asarray(RNG.normal(size=x.shape), jnp.float32) for _ in range(2)]
    start = calibrate(network.fn, network.params, data, config)
    learned = learn_ranges(network.fn, network.params, data, config, start, steps=20)

    program = trace(network.fn, network.params, x)
    known = (program, make_plan(program), network.params)

    def left(ranges: Calibration) -> float:
        error = 0.0
        for x in data:
            wanted = reference_run(*known, (x,))
            ran = corrected_run(*known, (x,), config, {**ranges_of(ranges), **wanted.means})
            error += float(squared_error(ran.outputs, wanted.outputs))
        return error

    assert left(learned) <= left(start)


def test_a_config_without_activation_bits_is_an_error() -> None:
    start = calibrate(mlp, PARAMS, DATA, A4)
    with pytest.raises(ConfigError, match="act_bits is None"):
        learn_ranges(mlp, PARAMS, DATA, replace(A4, act_bits=None, weight_bits=4), start)


def test_a_negative_number_of_steps_is_an_error() -> None:
    start = calibrate(mlp, PARAMS, DATA, A4)
    with pytest.raises(ConfigError, match="steps can't be -1"):
        learn_ranges(mlp, PARAMS, DATA, A4, start, steps=-1)


def test_no_batch_is_an_error() -> None:
    start = calibrate(mlp, PARAMS, DATA, A4)
    with pytest.raises(CalibrationError, match="learning ranges needs at least one batch"):
        learn_ranges(mlp, PARAMS, [], A4, start)


def test_the_ranges_of_another_function_are_an_error() -> None:
    start = calibrate(lambda p, x: x @ p["a"], PARAMS, DATA, A4)
    with pytest.raises(CalibrationError, match="have no calibrated range"):
        learn_ranges(mlp, PARAMS, DATA, A4, start)
