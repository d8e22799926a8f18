"""Learned scales: what the noise model knows is true, and the result is never worse by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flaxcle as fc
from by_hand import random_scales
from flaxcle import Group, QuantConfig, Scales, Site, Spec
from flaxcle.errors import CalibrationError, ConfigError, PathError
from flaxcle.jaxpr import trace
from flaxcle.learn.noise import noise, norms_of, soft_noise, terms_of
from flaxcle.learn.sensitivity import measure
from flaxcle.learn.sources import Source, find_sources
from zoo import Network, build

PER_CHANNEL = QuantConfig(weight_granularity="per_channel")
CONFIGS = {"w8a8": QuantConfig(), "w4a6": QuantConfig(weight_bits=4, act_bits=6)}
CONFIGS |= {
    "per channel": PER_CHANNEL,
    "weights": QuantConfig(act_bits=None, weight_symmetric=False),
}
LAWS = ("grouped", "moe", "llama_gqa", "scan_stack", "cond_branches", "pixel_shuffle")


def found_spec(network: Network) -> Spec:
    return fc.find_spec(network.fn, network.params, *network.inputs)


def vector(scales: Scales, spec: Spec) -> jax.Array:
    return jnp.concatenate([scales.log2[group.name].ravel() for group in spec.groups])


def predicted(network: Network, spec: Spec, config: QuantConfig, scales: Scales) -> float:
    """Noise over signal at these scales, by the model."""
    sources = find_sources(trace(network.fn, network.params, *network.inputs), spec, config)
    found = measure(network.fn, network.params, spec, [network.inputs], config)
    terms, x = terms_of(sources, found, config), vector(scales, spec)
    return float(sum(noise(source, terms[source.name], x) for source in sources.all))


def factor(source: Source, x: np.ndarray) -> np.ndarray:
    """How much each entry of a source grows when the groups have the log2 scales `x`."""
    out = np.zeros(source.shape)
    for link in source.links:
        own = np.where(link.ids >= 0, x[link.ids], 0) * link.power
        out += own.reshape([n if k in link.axes else 1 for k, n in enumerate(source.shape)])
    return np.exp2(out)


@pytest.mark.parametrize("name", LAWS)
def test_ranges_and_gains_move_as_the_links_say(name: str) -> None:
    network, config = build(name), QuantConfig()
    spec = found_spec(network)
    scales = random_scales(spec, 1, reach=2.0)
    x = np.asarray(vector(scales, spec))
    moved = fc.apply_scales(network.params, scales, spec)
    before, after = (
        measure(network.fn, params, spec, [network.inputs], config)
        for params in (network.params, moved)
    )
    sources = find_sources(trace(network.fn, network.params, *network.inputs), spec, config)
    assert any(source.links for source in sources.activations.values())
    for source in sources.all:
        grown, key = factor(source, x), source.name
        for old, new in ((before.high, after.high), (before.low, after.low)):
            wanted = np.asarray(old[key]) * grown
            atol = 1e-4 * np.abs(wanted).max()
            np.testing.assert_allclose(new[key], wanted, rtol=1e-3, atol=atol, err_msg=key)
        wanted = np.asarray(before.gain[key]) / grown**2
        np.testing.assert_allclose(
            after.gain[key], wanted, rtol=1e-2, atol=1e-3 * wanted.max(), err_msg=key
        )


def test_gains_are_squared_gradients() -> None:
    def fn(params: Any, x: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(x @ params["a"] + params["bias"])
        return jnp.tanh(hidden @ params["b"]).sum(keepdims=True)

    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s), "f") for k, s in (("a", (3, 4)), ("b", (4, 2)))}
    params["bias"] = jnp.zeros((1, 4), "f")
    x = jnp.asarray(rng.normal(size=(5, 3)), "f")
    pair = Group("a -> b", (4,), (Site("a", (1,)), Site("bias", (1,)), Site("b", (0,), -1)))
    found = measure(fn, params, Spec((pair,)), [(x,)], QuantConfig())
    hidden = jax.nn.relu(x @ params["a"])
    outer = 1 - jnp.tanh(hidden @ params["b"]) ** 2
    live = jnp.where(hidden > 0, outer @ params["b"].T, 0)
    centred = (x - x.mean(0, keepdims=True)).T @ live  # there is a bias that takes the mean
    np.testing.assert_allclose(found.gain["a/weight"], (centred**2).sum(0), rtol=1e-4)
    np.testing.assert_allclose(found.gain["b/weight"], ((hidden.T @ outer) ** 2).sum(1), rtol=1e-4)
    np.testing.assert_allclose(found.gain["b/input"], (live**2).sum(0), rtol=1e-4)
    np.testing.assert_allclose(found.energy, float(fn(params, x)[0, 0]) ** 2, rtol=1e-5)


@pytest.mark.parametrize("bits", [(8, None), (None, 8), (8, 8)])
def test_the_prediction_is_the_noise_of_fake_quantization(bits: tuple[Any, Any]) -> None:
    network = build("mlp")
    config = QuantConfig(weight_bits=bits[0], act_bits=bits[1])
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, *network.inputs[0].shape[1:])), "f")
    network = replace(network, inputs=(x,))
    spec = found_spec(network)
    wanted, real = [], []
    for seed in range(5):
        scales = random_scales(spec, seed, reach=0.5)
        moved = fc.apply_scales(network.params, scales, spec)
        ranges = fc.calibrate(network.fn, moved, [x], config)
        moved = fc.correct_bias(network.fn, moved, [x], config)
        clean = network.fn(network.params, x)
        noisy = fc.fake_quant(network.fn, config, ranges)(moved, x)
        real.append(float(jnp.sum((clean - noisy) ** 2) / jnp.sum(clean**2)))
        wanted.append(predicted(network, spec, config, scales) + output_noise(network, config))
    assert abs(10 * np.log10(np.mean(real) / np.mean(wanted))) < 1.5


def output_noise(network: Network, config: QuantConfig) -> float:
    """Noise over signal of the last quantizer, which no scale can change."""
    if config.act_bits is None:
        return 0.0
    out = np.asarray(network.fn(network.params, *network.inputs))
    step = (max(out.max(), 0) - min(out.min(), 0)) / (2**config.act_bits - 1)
    return float(step**2 / 12 * out.size / np.sum(out**2))


@pytest.mark.parametrize(
    ("name", "kind"), [*(("mlp", kind) for kind in CONFIGS), ("mobilenetv1_relu6", "w8a8")]
)
def test_never_worse_than_the_starts(name: str, kind: str) -> None:
    network, config = build(name), CONFIGS[kind]
    spec = found_spec(network)
    learned = fc.learn_scales(network.fn, network.params, spec, [network.inputs], config, steps=60)
    starts = (
        Scales.zeros(spec),
        fc.solve(network.params, spec),
        fc.solve(network.params, spec.select()),
    )
    least = min(predicted(network, spec, config, scales) for scales in starts)
    reached = predicted(network, spec, config, learned)
    assert reached < least or (kind == "per channel" and reached == least)


def loud_pair() -> tuple[Any, dict[str, jax.Array], Spec, jax.Array]:
    """A pair with two channels whose biases make large activations, which no weight tells of."""

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ params["a"] + params["bias"]) @ params["b"]

    rng = np.random.default_rng(2)
    a, b, bias = rng.normal(size=(8, 16)), rng.normal(size=(16, 4)), rng.normal(size=(1, 16))
    bias[:, :2] += 40
    params = {"a": a, "b": b, "bias": bias}
    pair = Group("a -> b", (16,), (Site("a", (1,)), Site("bias", (1,)), Site("b", (0,), -1)))
    x = jnp.asarray(rng.normal(size=(512, 8)), "f")
    return fn, jax.tree.map(lambda leaf: jnp.asarray(leaf, "f"), params), Spec((pair,)), x


def test_int8_is_nearer_to_float_on_data_that_it_has_not_seen() -> None:
    fn, params, spec, x = loud_pair()
    config, seen, unseen = QuantConfig(act_bits=6), x[:256], x[256:]

    def real(scales: Scales) -> float:
        moved = fc.apply_scales(params, scales, spec)
        ranges = fc.calibrate(fn, moved, [seen], config)
        return fc.sqnr(fn(params, unseen), fc.fake_quant(fn, config, ranges)(moved, unseen))

    learned = fc.learn_scales(fn, params, spec, [seen], config)
    assert real(learned) > real(fc.solve(params, spec)) + 1
    assert real(learned) > real(Scales.zeros(spec)) + 3


@pytest.mark.parametrize("config", [QuantConfig(), PER_CHANNEL])
def test_the_p_norm_comes_down_to_the_largest_entry(config: QuantConfig) -> None:
    network = build("mlp")
    spec = found_spec(network)
    sources = find_sources(trace(network.fn, network.params, *network.inputs), spec, config)
    found = measure(network.fn, network.params, spec, [network.inputs], config)
    terms, x = terms_of(sources, found, config), vector(random_scales(spec, 3, reach=2.0), spec)
    for source in sources.all:
        hard = float(noise(source, terms[source.name], x))
        soft = [
            float(
                soft_noise(
                    source, terms[source.name], norms_of(source, terms[source.name], x, p), x
                )
            )
            for p in (jnp.float32(8), jnp.float32(256))
        ]
        assert hard * (1 - 1e-4) <= soft[1] <= soft[0] * (1 + 1e-4)
        assert soft[1] <= hard * np.prod(source.shape) ** (2 / 256) * (1 + 1e-4)


def test_the_optimizer_is_the_users() -> None:
    fn, params, spec, x = loud_pair()
    still = fc.learn_scales(
        fn, params, spec, [x], QuantConfig(), optimizer=optax.sgd(0.0), steps=30
    )
    start = fc.solve(params, spec)
    np.testing.assert_array_equal(still["a -> b"], start["a -> b"])


def test_a_dead_network_keeps_its_scales() -> None:
    fn, params, spec, x = loud_pair()
    dead = jax.tree.map(jnp.zeros_like, params)
    scales = fc.learn_scales(fn, dead, spec, [x], QuantConfig(), steps=30)
    assert np.isfinite(scales["a -> b"]).all()


def test_batches_may_be_a_generator_of_tuples() -> None:
    fn, params, spec, x = loud_pair()
    config = QuantConfig()
    listed = fc.learn_scales(fn, params, spec, [x[:256], x[256:]], config, steps=30)
    drawn = ((part,) for part in (x[:256], x[256:]))
    np.testing.assert_array_equal(
        fc.learn_scales(fn, params, spec, drawn, config, steps=30)["a -> b"], listed["a -> b"]
    )


ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no batch": ({"batches": []}, CalibrationError, "at least one batch"),
    "negative steps": ({"steps": -1}, ConfigError, "steps can't be -1"),
    "unknown path": (
        {"spec": Spec((Group("g", (16,), (Site("c", (1,)),)),))},
        PathError,
        "'c', which the tree does not have",
    ),
    "nan data": ({"batches": [jnp.full((4, 8), jnp.nan)]}, CalibrationError, "not finite"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    fn, params, spec, x = loud_pair()
    changes, kind, text = ERRORS[case]
    arguments = {"spec": spec, "batches": [x], "steps": 5} | changes
    with pytest.raises(kind, match=text):
        fc.learn_scales(
            fn,
            params,
            arguments["spec"],
            arguments["batches"],
            QuantConfig(),
            steps=arguments["steps"],
        )
