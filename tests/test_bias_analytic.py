"""Analytic bias correction: moments against samples, and mean errors that shrink without data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

import flaxcle as fc
from by_hand import changed
from flaxcle.bias.adds import find_bias_adds
from flaxcle.bias.moments import Known, gaussian, propagate
from flaxcle.bias.statistics import norm_statistics
from flaxcle.errors import TraceError
from flaxcle.fold.match import find_norms
from flaxcle.jaxpr import trace
from flaxcle.jaxpr.frames import frames
from flaxcle.paths import named_leaves, replace_leaves
from flaxcle.quantize.plan import make_plan
from zoo import build
from zoo.base import avg_pool

SAMPLES = 200_000
RNG = np.random.default_rng(0)
MEAN, STD = np.array([-3.0, -0.5, 0.0, 1.0, 5.0]), np.array([1.0, 0.3, 2.0, 0.0, 4.0])
WEIGHTS_ONLY = fc.QuantConfig(weight_bits=4, act_bits=None)


def array(*shape: int) -> Any:
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def row(x: Any) -> Any:
    return x.reshape(1, -1)


def moments(fn: Callable[..., Any], params: Any, *inputs: Any) -> Known | None:
    """What is known of the first output, for standard normal inputs."""
    program = trace(fn, params, *inputs)
    adds = find_bias_adds(make_plan(program).flow)
    leaves, statistics = named_leaves(params), norm_statistics(program, params, None, inputs)
    known, _ = propagate(program, leaves, statistics, adds, lambda op, k, w: w)
    return known.get(id(program.graph.outputs[0]))


SHAPED = {"mean": jnp.asarray(MEAN, jnp.float32), "std": jnp.asarray(STD, jnp.float32),
          "m": array(5), "slope": jnp.abs(array(5))}  # fmt: skip
ELEMENTWISE: dict[str, Any] = {
    "nothing": lambda p, x: x,
    "relu": lambda p, x: jax.nn.relu(x),
    "relu6": lambda p, x: jax.nn.relu6(x),
    "clip below zero": lambda p, x: jnp.clip(x, -2.0, -0.5),
    "clip per channel": lambda p, x: jnp.minimum(jax.nn.relu(x), row(jnp.abs(p["m"]))),
    "leaky relu": lambda p, x: jax.nn.leaky_relu(x),
    "prelu": lambda p, x: jnp.where(x >= 0, x, x * row(p["slope"])),
    "gelu": lambda p, x: jax.nn.gelu(x),
    "exact gelu": lambda p, x: jax.nn.gelu(x, approximate=False),
    "silu": lambda p, x: jax.nn.silu(x),
    "hard swish": lambda p, x: jax.nn.hard_swish(x),
    "sigmoid": lambda p, x: jax.nn.sigmoid(x),
    "tanh": lambda p, x: jnp.tanh(x),
    "elu": lambda p, x: jax.nn.elu(x),
    "softplus": lambda p, x: jax.nn.softplus(x),
    "abs": lambda p, x: jnp.abs(x),
    "square": lambda p, x: x * x,
    "affine": lambda p, x: (x - row(p["m"])) * row(p["slope"]) / 3.0,
    "relu of relu6 less one": lambda p, x: jax.nn.relu(jax.nn.relu6(x) - 1.0),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_moments_of_activations_are_those_of_samples(name: str) -> None:
    """Within five standard errors of 200,000 samples, and of the table's steps at a kink."""
    act = ELEMENTWISE[name]

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return act(p, x * row(p["std"]) + row(p["mean"]))

    known = moments(fn, SHAPED, jnp.ones((2, 5)))
    assert known is not None
    z = jnp.asarray(RNG.normal(size=(SAMPLES, 5)), jnp.float32)
    y = np.asarray(fn(SHAPED, z), np.float64)
    error = y.std(0) / np.sqrt(SAMPLES)
    np.testing.assert_array_less(np.abs(known.mean[0] - y.mean(0)), 5 * error + 1e-3 * STD + 1e-6)
    spread = ((y - y.mean(0)) ** 2).std(0) / np.sqrt(SAMPLES)
    np.testing.assert_array_less(np.abs(known.var[0] - y.var(0)), 5 * spread + 1e-3 * STD**2 + 1e-6)


def test_the_relu_of_a_gaussian_is_the_closed_form() -> None:
    """E = mean * Phi(mean / std) + std * phi(mean / std), to 1e-4 standard deviations."""
    mean, std = np.linspace(-4, 4, 33), np.full(33, 1.5)
    known = gaussian(mean, std**2, 0, jnp.float32)
    relu = Known(jnp.maximum(known.points, 0), 0)
    u = mean / std
    want = mean * ndtr(u) + std * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(relu.mean, want, rtol=0, atol=1e-4 * 1.5)
    second = (mean**2 + std**2) * ndtr(u) + mean * std * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(relu.var, second - want**2, rtol=0, atol=2e-4 * 1.5**2)


def conv(x: Any, w: Any, padding: Any = "VALID", **options: Any) -> Any:
    strides = options.pop("strides", (1, 1))
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers, **options
    )


def behind_relu(p: Any, x: Any) -> Any:
    """Channels with means, from a standard normal input."""
    return jax.nn.relu(x * p["std"].reshape(1, 1, 1, -1) + p["mean"].reshape(1, 1, 1, -1))


LAYERS: dict[str, Any] = {
    "convolution": lambda p, x: conv(x, p["w"]),
    "zero padding": lambda p, x: conv(x, p["w"], "SAME"),
    "strided zero padding": lambda p, x: conv(x, p["w"], ((2, 1), (0, 3)), strides=(3, 2)),
    "dilated": lambda p, x: conv(x, p["w"], "SAME", rhs_dilation=(2, 1)),
    "transposed": lambda p, x: jax.lax.conv_transpose(x, p["w"], (2, 3), "SAME"),
    "padded mean pool": lambda p, x: avg_pool(x, (3, 3), 2),
    "mean pool of what is there": lambda p, x: nn.avg_pool(
        x, (3, 3), (2, 2), "SAME", count_include_pad=False
    ),
    "strided, grouped": lambda p, x: conv(
        x, p["grouped"], strides=(2, 2), feature_group_count=2
    ),
    "other layout": lambda p, x: jax.lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2), p["w"].transpose(3, 2, 0, 1), (1, 1), "VALID"
    ).transpose(0, 2, 3, 1),
    "dense": lambda p, x: jnp.einsum("nhwc,cd->nhwd", x, p["dense"]),
    "weight on the left": lambda p, x: jnp.einsum("dc,nhwc->dnhw", p["dense"].T, x).transpose(
        1, 2, 3, 0
    ),
    "concatenation": lambda p, x: jnp.concatenate([x, conv(x, p["w"], "SAME")[:, :6, :6]], -1),
    "split": lambda p, x: jnp.split(x, 2, -1)[1],
    "sum": lambda p, x: conv(x, p["one"]) - conv(x[:, ::-1], p["one"]),
    "reverse, slice": lambda p, x: x[..., ::-1][..., 1:3],
    "reshape": lambda p, x: x.reshape(x.shape[0], 6, 6, 2, 2).sum(3),
    "zero channels": lambda p, x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (1, 2))),
    "batch mean": lambda p, x: jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape),
    "mean pool": lambda p, x: jax.lax.reduce_window(
        x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4.0,
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
def test_means_behind_layers_are_those_of_samples(name: str) -> None:
    layer = LAYERS[name]
    params = {"w": array(3, 3, 4, 5), "grouped": array(3, 3, 2, 6), "dense": array(4, 3),
              "one": array(1, 1, 4, 4),
              "std": jnp.asarray([1.0, 0.5, 2.0, 0.0]),
              "mean": jnp.asarray([-1.0, 0.2, 3.0, 1.0])}  # fmt: skip

    def fn(p: Any, x: Any) -> Any:
        return layer(p, behind_relu(p, x))

    x = array(4000, 6, 6, 4)
    known, y = moments(fn, params, x), np.asarray(fn(params, x), np.float64)
    assert known is not None
    error = 5 * y.std((0, 1, 2)) / np.sqrt(4000) + 1e-3
    mean = np.broadcast_to(known.mean, (1, 1, 1, y.shape[-1]))[0, 0, 0]
    np.testing.assert_array_less(np.abs(mean - y.mean((0, 1, 2))), error)


def test_flattened_channels_repeat_at_every_position() -> None:
    params = {"dense": array(48, 2), "m": jnp.asarray([1.0, 2.0, 3.0])}

    def fn(p: Any, x: Any) -> Any:
        y = jax.nn.relu(x + p["m"].reshape(1, 1, 1, -1))
        return y.reshape(x.shape[0], -1) @ p["dense"]

    x = array(4000, 4, 4, 3)
    known, y = moments(fn, params, x), np.asarray(fn(params, x))
    assert known is not None
    error = 5 * y.std(0) / np.sqrt(4000)
    np.testing.assert_array_less(np.abs(known.mean[0] - y.mean(0)), error)
    np.testing.assert_allclose(known.var[0], y.var(0), rtol=0.1)


UNKNOWN: dict[str, Any] = {
    "product": lambda p, x: x * (x @ p["w"]),
    "attention": lambda p, x: jax.nn.softmax(x @ x.T) @ (x @ p["w"]),
    "sort": lambda p, x: jnp.sort(x @ p["w"]),
    "scan": lambda p, x: jax.lax.scan(lambda c, _: (jnp.tanh(c @ p["w"]), None), x, None, 2)[0],
    "maximum of channels": lambda p, x: (x @ p["w"]).max(-1, keepdims=True),
    "two layers' maximum": lambda p, x: jnp.maximum(x @ p["w"], x),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_has_no_rule_is_unknown_and_corrects_nothing(name: str) -> None:
    op = UNKNOWN[name]
    params = {"w": array(5, 5), "next": {"w": array(5, 2), "b": array(2)}}
    x = array(8, 5)

    def fn(p: Any, x: Any) -> Any:
        y = op(p, x)
        return jnp.broadcast_to(y, x.shape) @ p["next"]["w"] + row(p["next"]["b"])

    assert moments(lambda p, x: op(p, x), params, x) is None
    assert changed(params, fc.correct_bias_analytic(fn, params, WEIGHTS_ONLY, x)) == set()


def norm_net(p: Any, x: Any) -> Any:
    """Product, live BatchNorm, ReLU, layer."""
    y = (x @ p["w"] - row(p["mean"])) * row(p["scale"] * jax.lax.rsqrt(p["var"] + 1e-3))
    return jax.nn.relu(y + row(p["bias"])) @ p["next"]["w"] + row(p["next"]["b"])


NORM_NET = {
    "w": array(3, 4), "mean": array(4), "var": array(4) ** 2,
    "scale": jnp.asarray([-1.5, 1.0, 0.0, -0.2]), "bias": jnp.asarray([0.3, -0.5, 0.7, -0.4]),
    "next": {"w": array(4, 2), "b": array(2)},
}  # fmt: skip


def want_of_norm_net(p: Any, gain: Any = 1.0) -> np.ndarray:
    """`b - (Q(W) - W) E[relu(N(beta, gamma**2))]`, in closed form."""
    beta, std = np.asarray(p["bias"], np.float64), np.abs(np.asarray(p["scale"], np.float64))
    u = beta / np.where(std > 0, std, 1)
    smooth = beta * ndtr(u) + std * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi)
    mean = np.where(std > 0, smooth, np.maximum(beta, 0)) * gain
    w = np.asarray(NORM_NET["next"]["w"] if np.ndim(gain) == 0 else p["w2"], np.float64)
    step = np.abs(w).max() / 7
    return np.asarray(p["next"]["b"], np.float64) - mean @ (np.round(w / step) * step - w)


def test_trap_12_deviation_is_the_magnitude_of_gamma_and_may_be_zero() -> None:
    new = fc.correct_bias_analytic(norm_net, NORM_NET, WEIGHTS_ONLY, jnp.ones((4, 3)))
    np.testing.assert_allclose(new["next"]["b"], want_of_norm_net(NORM_NET), atol=1e-4)
    np.testing.assert_array_equal(new["bias"], NORM_NET["bias"])  # a standard normal has mean zero


def test_trap_13_statistics_move_with_the_scales() -> None:
    """Folded, rescaled and absorbed: the statistics from before, carried along exactly."""
    x = array(16, 3)
    gain = np.array([4.0, 0.5, 2.0, 8.0])
    folded = fc.fold_batch_norm(norm_net, NORM_NET, x)
    scaled = {
        **folded,
        "w": folded["w"] * row(jnp.asarray(gain, jnp.float32)),
        "bias": folded["bias"] * jnp.asarray(gain, jnp.float32),
        "next": {
            **folded["next"],
            "w": folded["next"]["w"] / jnp.asarray(gain, jnp.float32)[:, None],
        },
    }
    np.testing.assert_allclose(norm_net(scaled, x), norm_net(NORM_NET, x), atol=1e-5)
    new = fc.correct_bias_analytic(norm_net, scaled, WEIGHTS_ONLY, x, before=NORM_NET)
    want = want_of_norm_net({**NORM_NET, "w2": scaled["next"]["w"]}, gain)
    np.testing.assert_allclose(new["next"]["b"], want, atol=2e-4)
    stale = fc.correct_bias_analytic(norm_net, scaled, WEIGHTS_ONLY, x)
    assert np.abs(stale["next"]["b"] - want).max() > 1e-2


def test_a_point_that_no_line_maps_has_no_statistics() -> None:
    """Other weights are another function: nothing behind them is taken from before."""
    x = array(16, 3)
    folded = fc.fold_batch_norm(norm_net, {**NORM_NET, "w": array(3, 4)}, x)
    alone = fc.correct_bias_analytic(norm_net, folded, WEIGHTS_ONLY, x)
    mixed = fc.correct_bias_analytic(norm_net, folded, WEIGHTS_ONLY, x, before=NORM_NET)
    np.testing.assert_array_equal(mixed["next"]["b"], alone["next"]["b"])


def test_a_zeroed_channel_adds_nothing() -> None:
    x = array(16, 3)
    folded = fc.fold_batch_norm(norm_net, NORM_NET, x)
    keep = jnp.asarray([1.0, 0.0, 1.0, 1.0])
    pruned = {**folded, "w": folded["w"] * row(keep), "bias": folded["bias"] * keep}
    new = fc.correct_bias_analytic(norm_net, pruned, WEIGHTS_ONLY, x, before=NORM_NET)
    dead = {**NORM_NET, "bias": NORM_NET["bias"] * keep, "scale": NORM_NET["scale"] * keep}
    np.testing.assert_allclose(new["next"]["b"], want_of_norm_net(dead), atol=1e-4)


def test_a_live_gain_behind_a_layer_counts() -> None:
    """The product has no bias; that of the norm takes the error times the norm's gain."""
    x = jnp.ones((4, 3))
    new = fc.correct_bias_analytic(norm_net_of_relu, NORM_NET, WEIGHTS_ONLY, x)
    w = np.asarray(NORM_NET["w"], np.float64)
    step = np.abs(w).max() / 7
    gain = np.asarray(NORM_NET["scale"]) / np.sqrt(np.asarray(NORM_NET["var"]) + 1e-3)
    error = gain * (np.full(3, 1 / np.sqrt(2 * np.pi)) @ (np.round(w / step) * step - w))
    np.testing.assert_allclose(new["bias"], np.asarray(NORM_NET["bias"]) - error, atol=2e-3)


def norm_net_of_relu(p: Any, x: Any) -> Any:
    return norm_net(p, jax.nn.relu(x))


def test_nothing_to_correct_in_float() -> None:
    config = fc.QuantConfig(weight_bits=None)
    assert (
        changed(NORM_NET, fc.correct_bias_analytic(norm_net, NORM_NET, config, jnp.ones((4, 3))))
        == set()
    )


def test_shapes_are_enough() -> None:
    shape = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    one, two = (
        fc.correct_bias_analytic(norm_net, NORM_NET, WEIGHTS_ONLY, x, before=NORM_NET)
        for x in (shape, jnp.ones((4, 3)))
    )
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_before_of_another_structure_is_an_error() -> None:
    before = {name: leaf for name, leaf in NORM_NET.items() if name != "var"}
    with pytest.raises(TraceError, match=r"from before have another structure.*expose_clips"):
        fc.correct_bias_analytic(
            norm_net, NORM_NET, WEIGHTS_ONLY, jnp.ones((4, 3)), before={**before, "v": array(4)}
        )


@cache
def matched(name: str) -> tuple[Any, Any, Any]:
    """A network whose norms have the statistics of its standard normal inputs."""
    network = build(name)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(64, *network.inputs[0].shape[1:])))
    x = x.astype(jnp.float32)
    program = trace(network.fn, network.params, x)
    uses = [use for own in find_norms(frames(program)).values() for use in own]
    makers = {id(value): op for op in program.graph.flat for value in op.outputs}
    actions = {makers[id(use.start)]: Statistics(use) for use in uses}
    run = jax.jit(lambda params: program.run(params, (x,), actions).taps)
    params = network.params
    for _ in uses:
        params = replace_leaves(params, run(params))
    return network.fn, params, x


class Statistics:
    """Action: mean and variance per channel, under the paths of the norm's leaves."""

    feeds = ()

    def __init__(self, use: Any) -> None:
        self.use = use

    def __call__(self, op: Any, operands: Any, feed: Any) -> Any:
        (out,) = op.bind(*operands)
        rest = tuple(range(out.ndim - 1))
        norm = self.use.norm
        return [out], {norm.mean: out.mean(rest), norm.var: out.var(rest)}


def mean_error(name: str, params: Any, config: fc.QuantConfig) -> float:
    """How far the means of the outputs are from those in float."""
    fn, floating, x = matched(name)
    calibration = fc.calibrate(fn, floating, [x], config)
    rounded = jax.jit(fc.fake_quant(fn, config, calibration))(params, x)
    return float(np.linalg.norm(np.mean(rounded - jax.jit(fn)(floating, x), 0)))


@pytest.mark.parametrize("name", ["mlp", "mobilenetv1_relu6"])
def test_the_mean_error_of_the_outputs_shrinks(name: str) -> None:
    """Less than half of what the rounded weights did is left, without any data."""
    config = fc.QuantConfig(weight_bits=8, act_bits=None)
    fn, params, x = matched(name)
    new = fc.correct_bias_analytic(fn, params, config, x)
    assert mean_error(name, new, config) < 0.5 * mean_error(name, params, config)


def test_behind_a_norm_it_is_what_the_data_say() -> None:
    """Layers between a norm and its ReLU are exact; elsewhere a normal distribution is a guess."""
    fn, params, x = matched("mobilenetv2")
    config = fc.QuantConfig(weight_bits=8, act_bits=None)
    old, blind, seen = (
        named_leaves(tree)
        for tree in (
            params,
            fc.correct_bias_analytic(fn, params, config, x),
            fc.correct_bias(fn, params, [x], config),
        )
    )
    for k in (1, 3, 6):
        path = f"params/InvertedResidual_{k}/ConvNorm_0/BatchNorm_0/bias"
        shift = np.linalg.norm(seen[path] - old[path])
        assert np.linalg.norm(blind[path] - seen[path]) < 1e-3 * shift
    off, all_off = (
        sum(float(((leaves[path] - seen[path]) ** 2).sum()) for path in old)
        for leaves in (blind, old)
    )
    assert off < 0.64 * all_off


def test_folded_and_equalized_it_stays_with_the_statistics_from_before() -> None:
    """The whole pipeline without data, with and without moves: the corrections are as good."""
    fn, params, x = matched("mobilenetv1_relu6")
    fn, before = fc.expose_clips(fn, params, x)
    variables = fc.fold_batch_norm(fn, before, x)
    variables = fc.equalize(variables, fc.find_spec(fn, variables, x))
    config = fc.QuantConfig(weight_bits=6, act_bits=None)
    blind = fc.correct_bias_analytic(fn, variables, config, x, before=before)
    seen = fc.correct_bias(fn, variables, [x], config)
    old, blind, seen = (named_leaves(tree) for tree in (variables, blind, seen))
    off, all_off = (
        sum(float(((leaves[path] - seen[path]) ** 2).sum()) for path in old)
        for leaves in (blind, old)
    )
    assert off < 0.64 * all_off
