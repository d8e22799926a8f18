"""The search of each group's alpha: never worse than any single choice, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle import Group, QuantConfig, Scales, Site, Spec
from flaxcle.errors import CalibrationError, ConfigError, SpecError
from zoo import Network, networks

ALPHAS = (0.0, 0.5, 1.0)
CONFIGS = {
    "w8a8": QuantConfig(),
    "w8a8 per channel": QuantConfig(weight_granularity="per_channel"),
    "w4 per channel": QuantConfig(weight_bits=4, act_bits=None, weight_granularity="per_channel"),
}


def error(network: Network, params: Any, config: QuantConfig) -> float:
    """The squared error of the quantized outputs, by the public functions alone."""
    ranges = fc.calibrate(network.fn, params, [network.inputs], config)
    quantized = in_integers(network.fn, config)(params, ranges, *network.inputs)
    wanted = network.fn(network.params, *network.inputs)
    return float(jnp.sum((quantized - wanted) ** 2))


@lru_cache(maxsize=1)
def in_integers(fn: Callable[..., Any], config: QuantConfig) -> Callable[..., Any]:
    """The quantized network, compiled once for all params and their ranges."""
    return jax.jit(lambda p, ranges, *inputs: fc.fake_quant(fn, config, ranges)(p, *inputs))


def mlp(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jax.nn.relu((x * params["norm"][None]) @ params["up"]) @ params["down"]


def example() -> tuple[dict[str, jax.Array], Spec, jax.Array]:
    """A norm with two loud channels that are read quietly, as in language models."""
    rng = np.random.default_rng(0)
    shapes = {"norm": (8,), "up": (8, 12), "down": (12, 5)}
    params = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    loud = jnp.array([1, 5])
    params["norm"] = params["norm"].at[loud].set(60.0)
    params["up"] = params["up"].at[loud].divide(60.0)
    groups = (
        Group("norm -> up", (8,), (Site("norm", (0,)), Site("up", (0,), -1))),
        Group("up -> down", (12,), (Site("up", (1,)), Site("down", (0,), -1))),
    )
    return params, Spec(groups), jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama_gqa", "w8a8 per channel"),
        ("cross_attention", "w4 per channel"),
        ("cross_attention", "w8a8"),
    ],
)
def test_never_worse_than_one_alpha_for_all(name, kind):
    network, config = networks()[name](), CONFIGS[kind]
    spec = fc.find_spec(network.fn, network.params, *network.inputs)
    data = [network.inputs]
    scales = fc.balance_scales(network.fn, network.params, spec, data, config, alphas=ALPHAS)
    found = error(network, fc.apply_scales(network.params, scales, spec), config)
    ranges = fc.calibrate(network.fn, network.params, data, config)
    ranges = ranges if config.act_bits else ranges.averaged()
    others = [network.params]
    for alpha in ALPHAS:
        options: dict[str, Any] = {"alpha": alpha, "granularity": config.weight_granularity}
        others.append(fc.equalize(network.params, spec, ranges=ranges, **options))
    assert found <= min(error(network, params, config) for params in others) * (1 + 1e-3)
    assert found < error(network, network.params, config)


def test_loud_channels_cost_bits_until_they_are_balanced():
    params, spec, x = example()
    config = CONFIGS["w8a8 per channel"]
    scales = fc.balance_scales(mlp, params, spec, [x], config)
    network = Network("mlp", mlp, params, (x,), ((64, 5),))
    after = fc.apply_scales(params, scales, spec)
    np.testing.assert_allclose(mlp(after, x), mlp(params, x), rtol=1e-3, atol=1e-3)
    assert error(network, after, config) < error(network, params, config) / 4


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_best_of_one_group_is_found_by_trying_all(kind):
    params, spec, x = example()
    spec, config = spec.select("norm -> up"), CONFIGS[kind]
    scales = fc.balance_scales(mlp, params, spec, [x], config, alphas=ALPHAS)
    ranges = fc.calibrate(mlp, params, [x], config)
    ranges = ranges if config.act_bits else ranges.averaged()
    options: dict[str, Any] = {"ranges": ranges, "granularity": config.weight_granularity}
    trials = [Scales.zeros(spec), *(fc.solve(params, spec, alpha=a, **options) for a in ALPHAS)]
    network = Network("mlp", mlp, params, (x,), ((64, 5),))
    errors = [error(network, fc.apply_scales(params, s, spec), config) for s in trials]
    wanted = trials[int(np.argmin(errors))]
    np.testing.assert_allclose(scales["norm -> up"], wanted["norm -> up"], rtol=1e-6)


def test_scales_stay_where_nothing_is_quantized():
    params, spec, x = example()
    config = QuantConfig(weight_bits=None, act_bits=None, weight_granularity="per_channel")
    scales = fc.balance_scales(mlp, params, spec, [x], config)
    assert all(not np.any(log2) for log2 in scales.log2.values())


def test_held_groups_stay():
    params, spec, x = example()
    held = Spec((spec.groups[0], Group("held", (12,), spec.groups[1].sites, held=True)))
    scales = fc.balance_scales(mlp, params, held, [x], CONFIGS["w8a8 per channel"])
    assert np.any(scales.log2["norm -> up"])
    assert not np.any(scales.log2["held"])


def test_batches_may_be_a_generator_and_count_together():
    params, spec, x = example()
    config = CONFIGS["w8a8 per channel"]
    whole = fc.balance_scales(mlp, params, spec, [x], config, alphas=ALPHAS)
    parts = fc.balance_scales(mlp, params, spec, iter([x[:40], x[40:]]), config, alphas=ALPHAS)
    for name, log2 in whole.log2.items():
        np.testing.assert_allclose(parts.log2[name], log2, atol=1e-5)


def test_one_compilation_serves_all_groups():
    params, spec, x = example()

    def traces(spec: Spec) -> int:
        traced = []

        def fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
            traced.append(x.shape)
            return mlp(params, x)

        fc.balance_scales(fn, params, spec, [x], QuantConfig(), alphas=ALPHAS)
        return len(traced)

    assert traces(spec) == traces(spec.select("norm -> up"))


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ((), "there is no alpha to try. What to do: pass one or more numbers from 0 to 1."),
        ((0.5, 1.5), "alpha=1.5 is not possible. What to do: pass a number from 0 to 1."),
    ],
)
def test_alphas_out_of_their_range(alphas, message):
    params, spec, x = example()
    with pytest.raises(ConfigError, match=message):
        fc.balance_scales(mlp, params, spec, [x], QuantConfig(), alphas=alphas)


def test_a_spec_without_groups_and_no_data():
    params, spec, x = example()
    with pytest.raises(SpecError, match="the spec has no groups"):
        fc.balance_scales(mlp, params, Spec(), [x], QuantConfig())
    with pytest.raises(CalibrationError, match="calibration needs at least one batch"):
        fc.balance_scales(mlp, params, spec, [], QuantConfig())
