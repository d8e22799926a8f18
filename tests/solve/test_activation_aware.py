"""Balance with activations: SmoothQuant in NumPy, fixpoints of coupled groups, laws, errors."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle import Calibration, Group, QuantConfig, Scales, Site, Spec
from flaxcle.errors import CalibrationError, ConfigError, WeightError
from flaxcle.quantize.channels import ChannelRange
from zoo import Network, networks

RNG = np.random.default_rng(0)
ALPHAS = [0.0, 0.3, 0.5, 1.0]
TRANSFORMERS = ["vit", "gpt2", "llama_gqa", "llama_scan_remat", "gpt_nnx"]


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape) * np.exp2(RNG.normal(size=shape[-1])), jnp.float32)


def known(**peaks: Any) -> Calibration:
    """A calibration of kernels that are read along their first axis."""
    channels = {path: ChannelRange(peak, peak, (0,)) for path, peak in peaks.items()}
    return Calibration({}, {}, {}, (), channels)


def calibrated(network: Network, params: Any) -> Calibration:
    return fc.calibrate(network.fn, params, [network.inputs], QuantConfig())


class Case(NamedTuple):
    network: Network
    spec: Spec
    calibration: Calibration


@cache
def case(name: str) -> Case:
    network = networks()[name]()
    spec = fc.find_spec(network.fn, network.params, *network.inputs)
    return Case(network, spec, calibrated(network, network.params))


def largest(scales: Scales) -> float:
    return max(float(np.abs(log2).max()) for log2 in scales.log2.values())


def smooth_quant(x: np.ndarray, weights: list[np.ndarray], alpha: float) -> np.ndarray:
    """s_j of Xiao et al. 2023, eq. 4, written from the paper: x / s and s * W."""
    act = np.abs(x).max(0)
    weight = np.abs(np.concatenate(weights, axis=1)).max(1)
    return act**alpha / weight ** (1 - alpha)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_norm_before_three_kernels_is_smooth_quant(alpha, granularity):
    def fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        h = x * params["norm"][None]
        return jnp.concatenate([h @ params[name] for name in "qkv"], axis=1)

    params = {"norm": draw(6)} | {name: draw(6, 5) for name in "qkv"}
    sites = (Site("norm", (0,)), *(Site(name, (0,), -1) for name in "qkv"))
    spec, x = Spec((Group("g", (6,), sites),)), draw(20, 6)
    calibration = fc.calibrate(fn, params, [x[:13], x[13:]], QuantConfig())
    options = {"ranges": calibration, "alpha": alpha, "granularity": granularity}
    s = smooth_quant(
        np.asarray(x * params["norm"][None]), [np.asarray(params[n]) for n in "qkv"], alpha
    )
    np.testing.assert_allclose(fc.solve(params, spec, **options)["g"], 1 / s, rtol=1e-5)
    after = fc.equalize(params, spec, **options)
    np.testing.assert_allclose(after["norm"], params["norm"] / s, rtol=1e-5)
    np.testing.assert_allclose(after["q"], params["q"] * s[:, None], rtol=1e-5)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_averaged_channels_give_the_scales_of_awq(alpha):
    params = {"up": draw(3, 6), "down": draw(6, 4)}
    spec = Spec((Group("g", (6,), (Site("up", (1,)), Site("down", (0,), -1))),))
    fn = lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"]  # noqa: E731
    x = draw(40, 3)
    calibration = fc.calibrate(fn, params, [x], QuantConfig()).averaged()
    mean = np.abs(jax.nn.relu(x @ params["up"])).mean(0)
    wanted = np.abs(params["down"]).max(1) ** (1 - alpha) / mean**alpha
    scales = fc.solve(params, spec, ranges=calibration, alpha=alpha)
    np.testing.assert_allclose(scales["g"], wanted, rtol=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_coupled_groups_meet_at_the_fixpoint_of_plain_sweeps(alpha):
    """norm -> {q, v} and v -> o share v: each scale changes what the other balances."""
    sites = [Site("norm", (0,)), Site("q", (0,), -1), Site("v", (0,), -1)]
    spec = Spec(
        (
            Group("qv", (30,), tuple(sites)),
            Group("vo", (40,), (Site("v", (1,)), Site("o", (0,), -1))),
        )
    )
    params = {"norm": draw(30), "q": draw(30, 8), "v": draw(30, 40), "o": draw(40, 30)}
    peaks = {"q": 3 * jnp.exp2(draw(30)), "o": jnp.exp2(draw(40))}
    peaks["v"] = peaks["q"]
    scales = fc.solve(params, spec, ranges=known(**peaks), alpha=alpha, tol=1e-6)
    q, v, o = (np.abs(np.asarray(params[name], np.float64)) for name in "qvo")
    first, second = np.ones(30), np.ones(40)
    for _ in range(300):
        into = np.maximum(q.max(1), (v * second).max(1))
        first = into ** (1 - alpha) / np.asarray(peaks["q"]) ** alpha
        second = o.max(1) ** (1 - alpha) / np.asarray(peaks["o"]) ** alpha
    np.testing.assert_allclose(scales["qv"], first, rtol=1e-4)
    np.testing.assert_allclose(scales["vo"], second, rtol=1e-4)


def test_two_groups_that_scale_one_input():
    """relu(x a) * (x b) is read by c: both scales multiply what c reads."""
    params = {"a": draw(3, 5), "b": draw(3, 5), "c": draw(5, 2)}
    groups = [Group(n, (5,), (Site(n, (1,)), Site("c", (0,), -1))) for n in "ab"]
    peak = jnp.exp2(draw(5))
    after = fc.equalize(params, Spec(tuple(groups)), ranges=known(c=peak), alpha=0.5, tol=1e-6)
    gain = np.abs(after["a"] * after["b"]).max(0) / np.abs(params["a"] * params["b"]).max(0)
    np.testing.assert_allclose(peak * gain, np.abs(after["c"]).max(1), rtol=1e-3)


def test_with_alpha_one_all_channels_of_an_activation_are_equally_large():
    network, spec, calibration = case("vit")
    after = fc.equalize(network.params, spec, ranges=calibration, alpha=1.0)
    channels = calibrated(network, after).channels
    for name in ("MultiHeadDotProductAttention_0/value", "MultiHeadDotProductAttention_0/out"):
        peak = channels[f"params/EncoderBlock_0/{name}/kernel"].peak
        np.testing.assert_allclose(peak, 1.0, rtol=1e-4)


def test_with_alpha_zero_all_rows_of_a_kernel_are_equally_large():
    network, spec, calibration = case("vit")
    after = fc.equalize(network.params, spec, ranges=calibration, alpha=0.0)
    attention = after["params"]["EncoderBlock_0"]["MultiHeadDotProductAttention_0"]
    np.testing.assert_allclose(np.abs(attention["out"]["kernel"]).max(2), 1.0, rtol=1e-5)
    rows = [np.abs(attention[name]["kernel"]).max((1, 2)) for name in ("query", "key", "value")]
    np.testing.assert_allclose(np.max(rows, axis=0), 1.0, rtol=1e-3)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_balanced_network_is_in_balance(name):
    network, spec, calibration = case(name)
    assert largest(fc.solve(network.params, spec, ranges=calibration)) > 0.5
    after = fc.equalize(network.params, spec, ranges=calibration)
    again = fc.solve(after, spec, ranges=calibrated(network, after), tol=2e-3)
    assert largest(again) <= np.log2(1 + 2e-3)
    before, now = (network.fn(params, *network.inputs) for params in (network.params, after))
    np.testing.assert_allclose(now, before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_any_scaled_start_leads_to_the_same_weights(name):
    network, spec, calibration = case(name)
    rng = np.random.default_rng(1)
    log2 = {g.name: jnp.asarray(rng.normal(size=g.shape), jnp.float32) for g in spec.groups}
    start = fc.apply_scales(network.params, Scales(log2), spec)
    options: dict[str, Any] = {"alpha": 0.4, "tol": 1e-5}
    wanted = fc.equalize(network.params, spec, ranges=calibration, **options)
    found = fc.equalize(start, spec, ranges=calibrated(network, start), **options)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)  # noqa: E731
    jax.tree.map(close, found, wanted)


def test_groups_that_are_not_calibrated_are_balanced_by_weights():
    params = {"a": draw(3, 5), "b": draw(5, 4), "c": draw(4, 2)}
    first = Group("ab", (5,), (Site("a", (1,)), Site("b", (0,), -1)))
    second = Group("bc", (4,), (Site("b", (1,)), Site("c", (0,), -1)))
    only = fc.solve(params, Spec((first,)), alpha=0.25)
    ranges = known(c=jnp.exp2(draw(4)), other=jnp.ones(3))
    mixed = fc.solve(params, Spec((first,)), ranges=ranges, alpha=0.25)
    np.testing.assert_array_equal(mixed["ab"], only["ab"])
    both = fc.equalize(params, Spec((first, second)), ranges=ranges, tol=1e-6)
    np.testing.assert_allclose(np.abs(both["a"]).max(0), np.abs(both["b"]).max(1), rtol=1e-3)


def test_scales_along_other_axes_do_not_move_an_input():
    """A key's columns are divided by the query's scale; its input is not."""
    params = {"q": draw(6, 5), "k": draw(6, 5)}
    spec = Spec((Group("qk", (5,), (Site("q", (1,)), Site("k", (1,), -1))),))
    ranges = known(q=jnp.exp2(draw(6)), k=jnp.exp2(draw(6)))
    found, wanted = fc.solve(params, spec, ranges=ranges), fc.solve(params, spec)
    np.testing.assert_array_equal(found["qk"], wanted["qk"])


def test_per_channel_moves_the_calibrated_groups_alone():
    params = {"a": draw(3, 5), "b": draw(5, 4), "c": draw(4, 2)}
    groups = [
        Group("ab", (5,), (Site("a", (1,)), Site("b", (0,), -1))),
        Group("bc", (4,), (Site("b", (1,)), Site("c", (0,), -1))),
    ]
    options: dict[str, Any] = {"ranges": known(c=jnp.exp2(draw(4))), "granularity": "per_channel"}
    scales = fc.solve(params, Spec(tuple(groups)), **options)
    np.testing.assert_array_equal(scales["ab"], jnp.ones(5))
    assert not scales.kept["ab"].any()
    assert np.abs(scales.log2["bc"]).max() > 0.1
    after = fc.equalize(params, Spec(tuple(groups)), **options)
    assert after["a"] is params["a"]
    assert not np.array_equal(after["c"], params["c"])


def test_a_channel_that_never_fires_keeps_scale_one():
    params = {"norm": draw(4), "w": draw(4, 3)}
    spec = Spec((Group("g", (4,), (Site("norm", (0,)), Site("w", (0,), -1))),))
    scales = fc.solve(params, spec, ranges=known(w=jnp.array([1.0, 0.0, 4.0, 2.0])))
    assert scales.kept["g"].tolist() == [False, True, False, False]
    assert scales["g"][1] == 1.0


def test_a_reader_that_is_dead_in_a_channel_does_not_count():
    params = {"norm": draw(2), "q": jnp.array([[0.0], [1.0]]), "k": jnp.array([[4.0], [4.0]])}
    sites = (Site("norm", (0,)), Site("q", (0,), -1), Site("k", (0,), -1))
    peak = jnp.ones(2)
    scales = fc.solve(params, Spec((Group("g", (2,), sites),)), ranges=known(q=peak, k=peak))
    np.testing.assert_allclose(scales["g"], [2.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("name", ["vit", "llama_scan_remat"])
def test_under_jit(name):
    network, spec, calibration = case(name)
    compiled = jax.jit(fc.equalize, static_argnums=1)
    found = compiled(network.params, spec, ranges=calibration)
    wanted = fc.equalize(network.params, spec, ranges=calibration)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, wanted)


def test_under_vmap():
    network, spec, calibration = case("vit")
    others = jax.tree.map(lambda leaf: 2 * leaf[::-1], network.params)
    pairs = [(network.params, calibration), (others, calibrated(network, others))]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)
    found = jax.vmap(lambda p, c: fc.equalize(p, spec, ranges=c))(*stacked)
    for k, (params, ranges) in enumerate(pairs):
        wanted = fc.equalize(params, spec, ranges=ranges)
        close = lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=2e-3)  # noqa: E731
        jax.tree.map(close, found, wanted)


@pytest.mark.parametrize("kind", [jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit])
def test_on_sharded_weights(kind):
    params = {"up": draw(8, 16), "down": draw(16, 8)}
    spec = Spec((Group("g", (16,), (Site("up", (1,)), Site("down", (0,), -1))),))
    ranges = known(down=jnp.exp2(draw(16)))
    wanted = fc.equalize(params, spec, ranges=ranges)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    place = {"up": jax.P(None, "x"), "down": jax.P("x", None)}
    shardings = {name: jax.NamedSharding(mesh, p) for name, p in place.items()}
    found = fc.equalize(jax.device_put(params, shardings), spec, ranges=ranges)
    for name, leaf in found.items():
        assert leaf.sharding == shardings[name]
        np.testing.assert_array_equal(leaf, wanted[name])


PARAMS = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
PAIR = Spec((Group("g", (3,), (Site("a", (1,)), Site("b", (0,), -1))),))


@pytest.mark.parametrize("call", [fc.solve, fc.equalize])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"ranges": known()},
            CalibrationError,
            "the calibration has recorded no input of a weight: its field channels is empty. "
            "What to do: calibrate again, or leave out ranges to balance by weights alone.",
        ),
        (
            {"ranges": known(b=jnp.ones(4))},
            CalibrationError,
            r"belongs to another network: 'b' has shape \(3, 2\), its input \(4,\) along axes "
            r"\(0,\). What to do: calibrate the function with these params.",
        ),
        (
            {"ranges": {"b": jnp.ones(3)}},
            ConfigError,
            "ranges=<class 'dict'> is not possible. What to do: pass 'weights' or a Calibration.",
        ),
        (
            {"ranges": known(b=jnp.ones(3)), "alpha": -0.1},
            ConfigError,
            "alpha=-0.1 is not possible. What to do: pass a number from 0 to 1.",
        ),
    ],
)
def test_what_is_wrong_is_said(call, options, error, message):
    with pytest.raises(error, match=message):
        call(PARAMS, PAIR, **options)


def test_activations_that_are_not_finite_are_named():
    ranges = known(b=jnp.array([1.0, jnp.inf, 1.0]))
    with pytest.raises(WeightError, match=r"'b \(input\)'"):
        fc.solve(PARAMS, PAIR, ranges=ranges)
