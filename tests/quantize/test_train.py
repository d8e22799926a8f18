"""Ranges in a training loop: learned by gradients, or following the batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcle import Calibration, QuantConfig, calibrate, fake_quant, track_ranges
from flaxcle.errors import CalibrationError
from flaxcle.quantize.grid import make_grid, snap

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)
PARAMS = {k: jnp.asarray(RNG.normal(size=(4, 4)), jnp.float32) for k in ("a", "b")}
W4A4 = QuantConfig(weight_bits=4, act_bits=4, momentum=0.75)


def mlp(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["a"]) @ params["b"]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(mlp, PARAMS, [X], W4A4)


def scaled(calibration: Calibration, factor: float) -> Calibration:
    ends = {name: factor * value for name, value in calibration.high.items()}
    lows = {name: factor * value for name, value in calibration.low.items()}
    return replace(calibration, low=lows, high=ends)


def error(params: Any, calibration: Calibration, config: QuantConfig = W4A4) -> jax.Array:
    return ((fake_quant(mlp, config, calibration)(params, X) - mlp(PARAMS, X)) ** 2).mean()


# Learned ranges.


@pytest.mark.parametrize("symmetric", [False, True])
def test_ranges_get_the_gradient_of_their_quantizer(symmetric: bool) -> None:
    """The network written out, with each rounding in its place."""
    config = replace(W4A4, act_symmetric=symmetric)
    start = scaled(calibrate(mlp, PARAMS, [X], config), 0.7)

    def by_hand(calibration: Calibration) -> jax.Array:
        def act(name: str, x: jax.Array) -> jax.Array:
            low, high = calibration.low[name], calibration.high[name]
            return snap(x, make_grid(low, high, 4, symmetric=symmetric))

        def weight(w: jax.Array) -> jax.Array:
            return snap(w, make_grid(w.min(), w.max(), 4, symmetric=True))

        hidden = jnp.tanh(act("input_0", X) @ weight(PARAMS["a"]))
        out = act("output_0", act("b/input", hidden) @ weight(PARAMS["b"]))
        return ((out - mlp(PARAMS, X)) ** 2).mean()

    got = jax.grad(error, 1)(PARAMS, start, config)
    want = jax.grad(by_hand)(start)
    for end in ("low", "high"):
        for name, slope in getattr(want, end).items():
            np.testing.assert_allclose(getattr(got, end)[name], slope, rtol=1e-4, atol=1e-7)
    assert set(got.high) == {"input_0", "b/input", "output_0"}
    assert max(map(abs, got.high.values())) > 1e-3
    untouched = jax.tree.leaves((got.weights, got.channels))
    assert untouched
    assert not any(np.any(leaf) for leaf in untouched)


def test_the_gradient_of_the_params_is_the_same_with_and_without_the_ranges(
    calibration: Calibration,
) -> None:
    narrow = scaled(calibration, 0.7)
    alone = jax.grad(error)(PARAMS, narrow)
    jax.tree.map(np.testing.assert_array_equal, alone, jax.grad(error, (0, 1))(PARAMS, narrow)[0])


def test_a_weight_s_range_follows_it_and_gets_no_gradient(calibration: Calibration) -> None:
    """So the largest weight has the gradient of any other: straight through the rounding."""
    config = QuantConfig(weight_bits=4, act_bits=None)
    x = jnp.ones((1, 4))
    fn = lambda p, x: x @ p  # noqa: E731
    ranges = calibrate(fn, PARAMS["a"], [x], config)
    grad = jax.grad(lambda p: fake_quant(fn, config, ranges)(p, x).sum())(PARAMS["a"])
    np.testing.assert_array_equal(grad, 1)


def test_optax_learns_bad_ranges_away(calibration: Calibration) -> None:
    """In relative steps: a range of 1000 and one of 0.001 need the same number of them."""
    optimizer = optax.chain(
        optax.scale_by_adam(), optax.scale_by_param_block_norm(), optax.scale(-0.05)
    )

    @jax.jit
    def step(ranges: Calibration, state: Any) -> Any:
        loss, grads = jax.value_and_grad(error, 1)(PARAMS, ranges)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, state = optimizer.update(grads, state, ranges)
        return optax.apply_updates(ranges, updates), state, loss

    ranges, losses = scaled(calibration, 8.0), []
    state = optimizer.init(ranges)
    for _ in range(80):
        ranges, state, loss = step(ranges, state)
        losses.append(float(loss))
    assert step._cache_size() == 1
    assert np.mean(losses[-5:]) < losses[0] / 10
    assert np.mean(losses[-5:]) < 1.5 * float(error(PARAMS, calibration))
    assert jax.tree.structure(ranges) == jax.tree.structure(calibration)


# Ranges that follow the batches.


def test_outputs_are_those_of_the_ranges_as_they_came(calibration: Calibration) -> None:
    x = 3 * X
    out, moved = jax.jit(track_ranges(mlp, W4A4, calibration))(PARAMS, x)
    want = jax.jit(fake_quant(mlp, W4A4, calibration))(PARAMS, x)
    np.testing.assert_array_equal(out, want)
    assert moved.high["input_0"] != calibration.high["input_0"]


def test_ranges_move_a_quarter_of_the_way(calibration: Calibration) -> None:
    x = 3 * X
    _, moved = track_ranges(mlp, W4A4, calibration)(PARAMS, x)
    old = calibration.low["input_0"], calibration.high["input_0"]
    seen = float(x.min()), float(x.max())
    want = [0.75 * o + 0.25 * s for o, s in zip(old, seen, strict=True)]
    got = moved.low["input_0"], moved.high["input_0"]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert all(moved.high[name] != calibration.high[name] for name in calibration.high)
    for kept in ("weights", "channels", "layers"):
        assert getattr(moved, kept) is getattr(calibration, kept)


def test_a_tracked_activation_is_seen_before_it_is_rounded(calibration: Calibration) -> None:
    """Else a range could never grow."""
    narrow = scaled(calibration, 1e-3)
    _, moved = track_ranges(mlp, W4A4, narrow)(PARAMS, X)
    np.testing.assert_allclose(
        moved.high["input_0"], 0.75 * narrow.high["input_0"] + 0.25 * X.max(), rtol=1e-6
    )


def test_float_ranges_are_the_fixed_point() -> None:
    config = QuantConfig(weight_bits=None, act_bits=None, momentum=0.5)
    ranges = calibrate(mlp, PARAMS, [X], config)
    _, moved = track_ranges(mlp, config, ranges)(PARAMS, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), moved, ranges)


@pytest.mark.parametrize("observer", ["percentile", "mse"])
def test_the_observer_decides_what_a_batch_shows(observer: Any) -> None:
    config = replace(W4A4, act_observer=observer, percentile=90.0)
    ranges = calibrate(mlp, PARAMS, [X], config)
    _, moved = track_ranges(mlp, config, ranges)(PARAMS, X)
    np.testing.assert_allclose(moved.high["input_0"], ranges.high["input_0"], rtol=1e-6)
    assert ranges.high["input_0"] < X.max()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_broken_batch_does_not_break_the_ranges(calibration: Calibration, bad: float) -> None:
    _, moved = track_ranges(mlp, W4A4, calibration)(PARAMS, X.at[3, 1].set(bad))
    assert np.isfinite(jax.tree.leaves((moved.low, moved.high))).all()
    assert moved.high["input_0"] == calibration.high["input_0"]


def test_a_branch_that_is_not_taken_keeps_its_ranges() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        taken = x[0, 0] > 0
        return jax.lax.cond(taken, lambda: jnp.tanh(x) @ p["a"], lambda: jnp.sin(x) @ p["b"])

    ranges = calibrate(fn, PARAMS, [jnp.abs(X), -jnp.abs(X)], W4A4)
    _, moved = track_ranges(fn, W4A4, ranges)(PARAMS, 2 * jnp.abs(X))
    changed = {name for name in ranges.low if moved.high[name] != ranges.high[name]}
    assert {"a/input"} <= changed
    assert "b/input" not in changed


def test_each_layer_of_a_scan_has_a_range_that_moves() -> None:
    stacked = jnp.stack(list(PARAMS.values()))

    def fn(p: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, w: (jnp.tanh(h) @ w, None), x, p)[0]

    ranges = calibrate(fn, stacked, [X], W4A4)
    out, moved = jax.jit(track_ranges(fn, W4A4, ranges))(stacked, 3 * X)
    (name,) = (name for name, value in ranges.high.items() if jnp.ndim(value) == 1)
    assert moved.high[name].shape == (2,)
    assert np.all(moved.high[name] != ranges.high[name])
    assert out.shape == X.shape


def test_vmap_gives_a_range_for_each_member(calibration: Calibration) -> None:
    batch = jnp.stack([X, 3 * X])
    both, moved = jax.vmap(track_ranges(mlp, W4A4, calibration), (None, 0))(PARAMS, batch)
    one, alone = track_ranges(mlp, W4A4, calibration)(PARAMS, 3 * X)
    np.testing.assert_allclose(both[1], one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved.high["b/input"][1], alone.high["b/input"], rtol=1e-5)


def test_half_precision(calibration: Calibration) -> None:
    params, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (PARAMS, X))

    @jax.jit
    def step(params: Any, ranges: Calibration) -> Any:
        def loss(params: Any, ranges: Calibration) -> Any:
            out, moved = track_ranges(mlp, W4A4, ranges)(params, x)
            return (out.astype(jnp.float32) ** 2).mean(), moved

        return jax.grad(loss, (0, 1), has_aux=True)(params, ranges)

    (grads, slopes), moved = step(params, calibration)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves((slopes.high, moved.high))} == {
        jnp.dtype(jnp.float32)
    }
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((slopes, moved)))


def test_a_network_learns_while_its_ranges_follow() -> None:
    """Three bits, weights twice as large as at the start: still ranges fit at the end."""
    config = QuantConfig(weight_bits=3, act_bits=4, momentum=0.9)
    target = jnp.sin(3 * X[:, :1])
    params = {"a": PARAMS["a"], "b": PARAMS["b"][:, :1]}
    optimizer = optax.adam(0.02)

    @jax.jit
    def step(params: Any, ranges: Calibration, state: Any) -> Any:
        def loss(params: Any) -> Any:
            out, moved = track_ranges(mlp, config, ranges)(params, X)
            return ((out - target) ** 2).mean(), moved

        (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), moved, state, value

    ranges, state, losses = calibrate(mlp, params, [X], config), optimizer.init(params), []
    for _ in range(150):
        params, ranges, state, value = step(params, ranges, state)
        losses.append(float(value))
    assert step._cache_size() == 1
    assert np.mean(losses[-10:]) < losses[0] / 2
    fresh = calibrate(mlp, params, [X], config)
    np.testing.assert_allclose(ranges.high["b/input"], fresh.high["b/input"], rtol=0.2)


def test_a_calibration_of_another_function_is_an_error(calibration: Calibration) -> None:
    fn = lambda p, x: mlp(p, mlp(p, x))  # noqa: E731
    with pytest.raises(CalibrationError, match="quantizers of this function have no calibrated"):
        track_ranges(fn, W4A4, calibration)(PARAMS, X)
