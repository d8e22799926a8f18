"""The recipe: never worse than the network as it is, and blind to how the network was scaled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from by_hand import random_scales
from flaxcle import QuantConfig, Recipe, quantize_recipe
from flaxcle.errors import CalibrationError, WeightError
from flaxcle.recipe.candidate import unscaled
from flaxcle.recipe.stages import Kitchen
from zoo import Network, build

STAGES = ["as it is", "fold BatchNorm", "expose clips", "prune dead channels"]
STAGES += ["equalize", "learn scales"]
ROUNDINGS = ["round weights (minmax)", "round weights (mse)"]
LEARNED = "round weights (learned scales)"  # tried where learned scales lose at first
LAST = ["ranges (percentile)", "ranges (mse)", "correct biases"]


def batches(network: Network, count: int = 4, size: int = 16) -> list[jax.Array]:
    shape = (count, size, *network.inputs[0].shape[1:])
    return list(jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32))


def quality(network: Network, recipe: Recipe, x: jax.Array) -> float:
    """SQNR of the quantized output, by the public functions alone."""
    quantized = fc.fake_quant(recipe.fn, recipe.config, recipe.calibration)
    clean = jax.jit(network.fn)(network.params, x)
    return fc.sqnr(clean, jax.jit(quantized)(recipe.params, x))


def naive(network: Network, data: list[jax.Array], config: QuantConfig) -> float:
    ranges = fc.calibrate(network.fn, network.params, data[:-1], config)
    quantized = fc.fake_quant(network.fn, config, ranges)
    clean = jax.jit(network.fn)(network.params, data[-1])
    return fc.sqnr(clean, jax.jit(quantized)(network.params, data[-1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "granularity", "bits", "rounding"),
    [("mlp", "per_channel", 6, None), ("mobilenetv1_relu6", "per_tensor", 8, False)],
)
def test_never_worse_than_the_network_as_it_is(
    name: str, granularity: Any, bits: int, rounding: bool | None
) -> None:
    network, config = build(name), QuantConfig(weight_bits=bits, weight_granularity=granularity)
    data = batches(network)
    recipe = quantize_recipe(network.fn, network.params, data, config, rounding=rounding)
    before, after = naive(network, data, config), quality(network, recipe, data[-1])
    assert after >= before
    rows = list(recipe.stages)
    rounded = [] if rounding is False else ROUNDINGS
    stages = [row["stage"] for row in rows if row["stage"] != LEARNED]
    assert stages == [*STAGES, *rounded, *LAST]
    np.testing.assert_allclose(rows[0]["SQNR dB"], before, atol=0.02)
    last = rows[-1]
    reported = last["corrected dB"] if last["kept"] else last["SQNR dB"]
    np.testing.assert_allclose(reported, after, atol=0.02)


@pytest.mark.slow
def test_the_scaling_of_the_network_does_not_matter() -> None:
    """Scales up to 1000 keep the function and ruin int8; the recipe does not see them."""
    network, config = build("mlp"), QuantConfig()
    data = batches(network)
    spec = fc.find_spec(network.fn, network.params, data[0])
    stressed = fc.apply_scales(network.params, random_scales(spec, 1, reach=5.0), spec)
    plain, loud = (
        quality(network, quantize_recipe(network.fn, params, data, config), data[-1])
        for params in (network.params, stressed)
    )
    ranges = fc.calibrate(network.fn, stressed, data[:-1], config)
    ruined = fc.fake_quant(network.fn, config, ranges)(stressed, data[-1])
    clean = network.fn(network.params, data[-1])
    assert fc.sqnr(clean, ruined) < plain - 6
    assert abs(loud - plain) < 1.0


@pytest.mark.slow
def test_rounding_is_a_stage_that_can_be_left_out() -> None:
    network, config = build("mlp"), QuantConfig(weight_bits=4, act_bits=None)
    data = batches(network)
    recipe = quantize_recipe(network.fn, network.params, data, config)
    stages = recipe.stages.column("stage")
    assert [s for s in stages if s != LEARNED] == [*STAGES, *ROUNDINGS, "correct biases"]
    kept = [row["stage"] for row in recipe.stages if row["kept"]]
    assert sum(stage in (*ROUNDINGS, LEARNED) for stage in kept) == 1
    assert quality(network, recipe, data[-1]) >= naive(network, data, config)
    plain = quantize_recipe(network.fn, network.params, data, config, rounding=False)
    assert plain.stages.column("stage") == [*STAGES, "correct biases"]


@pytest.mark.slow
def test_learned_scales_that_lose_at_first_may_win_with_rounded_weights() -> None:
    zoo, config = build("mlp"), QuantConfig(weight_bits=4)
    spec = fc.find_spec(zoo.fn, zoo.params, *zoo.inputs)
    ruined = fc.apply_scales(zoo.params, random_scales(spec, 1, reach=5.0), spec)
    data = [(x,) for x in batches(zoo)]
    kitchen = Kitchen(zoo.fn, ruined, data, config, 1.0)
    line = kitchen.measured(unscaled(zoo.fn, ruined), "as it is", 0.0)
    learned = kitchen.stepped("learn scales", kitchen.learn, line)
    lost = replace(learned, noise=2 * line.noise, noise_corrected=2 * line.noise)
    best = kitchen.rounded(line, lost)
    assert best.stages == ("as it is", "learn scales", LEARNED)
    assert best.least < learned.least < line.least


@pytest.mark.slow
def test_ranges_are_learned_below_eight_bits() -> None:
    network, config = build("mlp"), QuantConfig(weight_bits=None, act_bits=4)
    data = batches(network)
    recipe = quantize_recipe(network.fn, network.params, data, config)
    rows = {row["stage"]: row for row in recipe.stages}
    assert list(rows) == [*STAGES, *LAST[:-1], "learn ranges", LAST[-1]]
    assert rows["learn ranges"]["kept"]
    assert quality(network, recipe, data[-1]) > naive(network, data, config)


def test_the_kept_stages_are_those_on_the_way_to_the_best() -> None:
    network, config = build("mlp"), QuantConfig()
    recipe = quantize_recipe(network.fn, network.params, batches(network), config)
    rows = list(recipe.stages)
    *measured, last = rows
    best = max(max(row["SQNR dB"], row["corrected dB"]) for row in measured)
    assert best == max(last["SQNR dB"], last["corrected dB"])
    kept = [row for row in measured if row["kept"]]
    assert max(kept[-1]["SQNR dB"], kept[-1]["corrected dB"]) == best


def test_no_batch_is_an_error() -> None:
    network = build("mlp")
    with pytest.raises(CalibrationError, match="at least one calibration batch"):
        quantize_recipe(network.fn, network.params, [], QuantConfig())


def test_a_weight_that_is_not_finite_is_an_error() -> None:
    network = build("mlp")
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), network.params)
    with pytest.raises(WeightError, match="NaN or infinity"):
        quantize_recipe(network.fn, broken, batches(network), QuantConfig())
