"""Distilled inputs: they look like training data to every norm, and need none."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle.errors import CalibrationError, ConfigError
from flaxcle.recipe.pipeline import MARGIN

RNG = np.random.default_rng(0)
LIKE = jax.ShapeDtypeStruct((32, 8, 8, 3), jnp.float32)


class Net(nn.Module):
    """Two norms, the second behind a depthwise convolution."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = {"use_running_average": True}
        x = nn.relu(nn.BatchNorm(**norm, name="first")(nn.Conv(8, (3, 3))(x)))
        x = nn.Conv(8, (3, 3), feature_group_count=8, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(**norm, name="second")(x))
        return nn.Dense(5)(x.mean((1, 2)))


def trained() -> Any:
    """Variables whose norms remember what the network sees of skewed inputs."""
    variables = Net().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    draw = {"scale": RNG.uniform(0.5, 2, 8), "bias": RNG.normal(size=8)}
    params = {**variables["params"], "first": {k: jnp.asarray(v, "f") for k, v in draw.items()}}
    variables = {**variables, "params": params}
    x = jnp.asarray(RNG.normal(0.7, 2.0, (256, 8, 8, 3)), jnp.float32)
    for name, layer in (("first", "Conv_0"), ("second", "Conv_1")):
        seen = Net().apply(variables, x, capture_intermediates=True, mutable="intermediates")[1]
        out = seen["intermediates"][layer]["__call__"][0]
        own = {"mean": out.mean((0, 1, 2)), "var": out.var((0, 1, 2))}
        variables = {**variables, "batch_stats": {**variables["batch_stats"], name: own}}
    return variables


def behind_norms(variables: Any, x: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    seen = Net().apply(variables, x, capture_intermediates=True, mutable="intermediates")[1]
    outs = {name: seen["intermediates"][name]["__call__"][0] for name in ("first", "second")}
    return {name: (out.mean((0, 1, 2)), out.std((0, 1, 2))) for name, out in outs.items()}


def misfit(variables: Any, x: jax.Array) -> float:
    total = 0.0
    for name, (mean, std) in behind_norms(variables, x).items():
        own = variables["params"][name]
        total += float(jnp.mean((mean - own["bias"]) ** 2 + (std - jnp.abs(own["scale"])) ** 2))
    return total


def test_statistics_behind_the_norms_become_those_that_they_remember() -> None:
    variables = trained()
    made = fc.distill_inputs(Net().apply, variables, LIKE, batches=2, steps=100)
    noise = jax.random.normal(jax.random.key(1), LIKE.shape)
    before = misfit(variables, noise)
    assert before > 0.5
    for (x,) in made:
        assert misfit(variables, x) < 0.05 * before


def test_batches_differ_and_a_seed_repeats_them() -> None:
    variables, options = trained(), {"batches": 2, "steps": 3}
    one, two = fc.distill_inputs(Net().apply, variables, LIKE, **options)
    assert not np.array_equal(one[0], two[0])
    again = fc.distill_inputs(Net().apply, variables, LIKE, **options)
    np.testing.assert_array_equal(one[0], again[0][0])
    other = fc.distill_inputs(Net().apply, variables, LIKE, **options, seed=1)
    assert not np.array_equal(one[0], other[0][0])


def test_folded_norms_remember_nothing() -> None:
    folded = fc.fold_batch_norm(Net().apply, trained(), LIKE)
    with pytest.raises(CalibrationError, match="this network has no live one") as info:
        fc.distill_inputs(Net().apply, folded, LIKE)
    assert "2 folded norms" in str(info.value)
    assert "before folding" in str(info.value)


def test_integer_inputs_and_empty_requests_are_errors() -> None:
    tokens = jax.ShapeDtypeStruct((2, 4), jnp.int32)
    with pytest.raises(CalibrationError, match="float dtypes only"):
        fc.distill_inputs(lambda p, x: p["w"][x], {"w": jnp.ones(4)}, tokens)
    for name in ("batches", "steps"):
        with pytest.raises(ConfigError, match=f"{name} can't be 0"):
            fc.distill_inputs(Net().apply, trained(), LIKE, **{name: 0})


def test_the_recipe_works_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flaxcle.recipe.pipeline.distill_inputs", quick_inputs)
    variables, config = trained(), fc.QuantConfig(weight_bits=6)
    recipe = fc.quantize_recipe(Net().apply, variables, None, config, inputs=(LIKE,))
    x = jnp.asarray(RNG.normal(0.7, 2.0, LIKE.shape), jnp.float32)
    clean = Net().apply(variables, x)
    quantized = jax.jit(fc.fake_quant(recipe.fn, config, recipe.calibration))
    assert fc.sqnr(clean, quantized(recipe.params, x)) > 15
    assert not any("ranges" in stage for stage in recipe.stages.column("stage"))
    seen = [x for (x,) in quick_inputs(Net().apply, variables, LIKE)][:3]
    narrow = fc.calibrate(recipe.fn, recipe.params, seen, config)
    np.testing.assert_allclose(
        recipe.calibration.high["input_0"], MARGIN * narrow.high["input_0"], rtol=1e-6
    )


def quick_inputs(fn: Any, variables: Any, *inputs: Any) -> Any:
    return fc.distill_inputs(fn, variables, *inputs, batches=4, steps=50)


def test_without_data_the_recipe_must_know_the_shapes() -> None:
    with pytest.raises(CalibrationError, match="must know the shapes of the inputs"):
        fc.quantize_recipe(Net().apply, trained(), None, fc.QuantConfig())
