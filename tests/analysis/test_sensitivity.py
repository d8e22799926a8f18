"""The masks: all on is fake_quant, all off is float, one on is one rounded tensor."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle.analysis.sensitivity import ALL, run_masked
from flaxcle.compare import sqnr
from flaxcle.errors import CalibrationError, ConfigError
from flaxcle.jaxpr import trace
from flaxcle.paths import float_leaves
from flaxcle.quantize.fake import ranges_of
from flaxcle.quantize.plan import make_plan
from flaxcle.quantize.weights import snap_weight
from zoo import networks

CONFIG = fc.QuantConfig()
RNG = np.random.default_rng(0)
PARAMS = {
    name: {"kernel": jnp.asarray(RNG.normal(size=shape), jnp.float32)}
    for name, shape in {"a": (4, 6), "b": (6, 6), "c": (6, 3)}.items()
}
X = jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)


def net(params, x):
    h = jax.nn.relu(x @ params["a"]["kernel"])
    return (h + h @ params["b"]["kernel"]) @ params["c"]["kernel"]


def rows_of(table):
    return {(row["layer"], row["kind"]): row for row in table}


@pytest.fixture(scope="module")
def table():
    return fc.sensitivity(net, PARAMS, [X], CONFIG)


@pytest.mark.parametrize("name", ["mlp", "squeeze_excite", "scan_remat_stack"])
def test_all_flags_on_is_fake_quant_and_all_off_the_function(name):
    network = networks()[name]()
    fn, params, inputs = network.fn, network.params, network.inputs
    calibration = fc.calibrate(fn, params, [inputs], CONFIG)
    count = len(make_plan(trace(fn, params, *inputs)).quantizers())
    run = jax.jit(run_masked, static_argnums=(0, 1))

    def rounded(params, calibration, *inputs):
        return fc.fake_quant(fn, CONFIG, calibration)(params, *inputs)

    on, off = (
        run(fn, CONFIG, params, ranges_of(calibration), np.full(count, flag), inputs)
        for flag in (True, False)
    )
    wanted = jax.jit(rounded)(params, calibration, *inputs), jax.jit(fn)(params, *inputs)
    for found, outputs in zip((on, off), wanted, strict=True):
        for one, two in zip(found, float_leaves(outputs), strict=True):
            np.testing.assert_array_equal(one, two)


def test_every_place_has_a_row_ranked_by_its_noise(table):
    places = [(row["layer"], row["kind"]) for row in table if row["layer"] != ALL]
    weights = [(layer, "weights") for layer in "abc"]
    read = [(layer, "activations") for layer in ("input_0", "b", "add", "c", "output_0")]
    assert sorted(places) == sorted(weights + read)
    alone = table.column("alone dB")[3:]
    assert alone == sorted(alone)


def test_gain_is_what_leaving_it_in_float_wins(table):
    everything = rows_of(table)[ALL, "both"]["alone dB"]
    for row in table:
        assert row["gain dB"] == row["without dB"] - everything


def test_the_totals_are_those_of_the_other_configs(table):
    calibration = fc.calibrate(net, PARAMS, [X], CONFIG)
    for kind, config in (
        ("both", CONFIG),
        ("weights", fc.QuantConfig(act_bits=None)),
        ("activations", fc.QuantConfig(weight_bits=None)),
    ):
        rounded = fc.fake_quant(net, config, calibration)(PARAMS, X)
        wanted = sqnr(net(PARAMS, X), rounded)
        assert rows_of(table)[ALL, kind]["alone dB"] == pytest.approx(wanted, rel=1e-4)
    limits = rows_of(table)
    assert limits[ALL, "weights"]["without dB"] == limits[ALL, "activations"]["alone dB"]


@pytest.mark.parametrize("layer", ["a", "b", "c"])
def test_one_weight_alone_is_that_leaf_rounded(table, layer):
    rounded = snap_weight(PARAMS[layer]["kernel"], CONFIG, ())
    wanted = sqnr(net(PARAMS, X), net({**PARAMS, layer: {"kernel": rounded}}, X))
    assert rows_of(table)[layer, "weights"]["alone dB"] == pytest.approx(wanted, rel=1e-4)


def test_batches_add_up(table):
    calibration = fc.calibrate(net, PARAMS, [X], CONFIG)
    halves = fc.sensitivity(net, PARAMS, iter([X[:8], X[8:]]), CONFIG, calibration)
    for place, row in rows_of(table).items():
        assert rows_of(halves)[place]["alone dB"] == pytest.approx(row["alone dB"], rel=1e-4)


@pytest.mark.parametrize("depth", [2, 8])
def test_one_program_serves_all_layers(depth):
    calls = []

    def deep(params, x):
        calls.append(1)
        for kernel in params:
            x = jax.nn.relu(x @ kernel)
        return x

    params = [jnp.eye(4) + 0.1 * k for k in range(depth)]
    calibration = fc.calibrate(deep, params, [X], CONFIG)
    calls.clear()
    assert len(fc.sensitivity(deep, params, [X], CONFIG, calibration)) == 3 + 2 * depth + 1
    assert len(calls) == 2  # the plan, and the program that is compiled


def test_what_stays_in_float_has_no_row():
    table = fc.sensitivity(net, PARAMS, [X], fc.QuantConfig(act_bits=None))
    assert set(table.column("kind")) == {"both", "weights"}
    assert len(table) == 2 + 3


def test_a_network_on_its_grid_has_nothing_to_gain():
    fn, params = lambda p, x: x @ p["w"], {"w": jnp.array([[127.0, -1.0]])}
    table = fc.sensitivity(fn, params, [jnp.ones((1, 1))], fc.QuantConfig(act_bits=None))
    assert set(table.column("alone dB")) == {float("inf")}
    assert set(table.column("gain dB")) == {0.0}


def test_nothing_to_quantize_is_an_error():
    with pytest.raises(ConfigError) as error:
        fc.sensitivity(net, PARAMS, [X], fc.QuantConfig(weight_bits=None, act_bits=None))
    assert str(error.value) == (
        "there is nothing to quantize: weight_bits and act_bits are both None. "
        "What to do: give one of them a number of bits."
    )


def test_no_batch_is_an_error():
    with pytest.raises(CalibrationError) as error:
        fc.sensitivity(net, PARAMS, [], CONFIG)
    assert str(error.value) == (
        "sensitivity needs at least one batch: batches is empty or already consumed. "
        "What to do: pass a list of inputs, or a fresh generator."
    )


def test_the_calibration_of_another_function_is_an_error():
    other = fc.calibrate(lambda p, x: x @ p["a"]["kernel"], PARAMS, [X], CONFIG)
    with pytest.raises(CalibrationError, match="no calibrated range"):
        fc.sensitivity(net, PARAMS, [X], CONFIG, other)
