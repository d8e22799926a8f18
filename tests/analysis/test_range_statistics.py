"""Ranges, shares and histograms against NumPy, and against what calibrate and fake_quant do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from flaxcle.compare import sqnr
from flaxcle.errors import CalibrationError
from flaxcle.quantize.grid import make_grid
from flaxcle.quantize.weights import snap_weight, weight_range
from zoo import networks

CONFIG = fc.QuantConfig()
RNG = np.random.default_rng(1)
KERNEL = jnp.asarray(RNG.normal(size=(3, 3, 2, 4)) * [1, 8, 0.01, 0], jnp.float32)
HEAD = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
PARAMS = {"conv": {"kernel": KERNEL}, "head": {"kernel": HEAD}}
X = jnp.asarray(RNG.normal(size=(6, 5, 5, 2)), jnp.float32)


def net(params, x):
    out = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(out).mean((1, 2)) @ params["head"]["kernel"]


def stacked(params, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["w"])[0]


def rows_of(table):
    return {row["name"]: row for row in table}


@pytest.fixture(scope="module")
def found():
    return fc.range_statistics(net, PARAMS, [X], CONFIG)


@pytest.mark.parametrize("name", ["mlp", "squeeze_excite", "scan_remat_stack"])
def test_ranges_are_those_of_calibrate(name):
    network = networks()[name]()
    fn, params = network.fn, network.params
    calibration = fc.calibrate(fn, params, [network.inputs], CONFIG)
    found = fc.range_statistics(fn, params, [network.inputs], CONFIG, calibration)
    leaves = {row["leaf"] for row in found.weights}
    assert leaves
    for leaf in leaves:
        rows = [row for row in found.weights if row["leaf"] == leaf]
        ends = min(row["min"] for row in rows), max(row["max"] for row in rows)
        np.testing.assert_array_equal(ends, calibration.weights[leaf])
    for name, low in calibration.low.items():
        rows = [row for row in found.activations if row["name"].partition("[")[0] == name]
        np.testing.assert_array_equal([row["min"] for row in rows], np.ravel(low))
        high = np.ravel(calibration.high[name])
        np.testing.assert_array_equal([row["max"] for row in rows], high)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        fc.QuantConfig(weight_bits=4, weight_granularity="per_channel"),
        fc.QuantConfig(weight_symmetric=False, weight_observer="percentile", percentile=95.0),
    ],
)
def test_a_weight_is_on_the_grid_of_fake_quant(config):
    row = rows_of(fc.range_statistics(net, PARAMS, [X], config).weights)["conv/weight"]
    low, high = weight_range(KERNEL, config, (3,))
    grid = make_grid(low, high, config.weight_bits or 0, symmetric=config.weight_symmetric)
    steps = np.round(KERNEL / grid.scale)
    outside = (steps + grid.zero < grid.lowest) | (steps + grid.zero > grid.highest)
    assert row["scale"] == pytest.approx(float(np.max(grid.scale)))
    assert row["zero point"] == int(np.max(grid.zero))
    vanished = 100 * np.mean((steps == 0) & (np.asarray(KERNEL) != 0))
    assert row["under half a step %"] == pytest.approx(vanished)
    assert row["clipped %"] == pytest.approx(100 * float(np.mean(outside)))
    rounded = snap_weight(KERNEL, config, (3,))
    assert row["SQNR dB"] == pytest.approx(sqnr(KERNEL, rounded), rel=1e-4)


def test_the_histogram_counts_every_grid_value(found):
    histogram, row = found.histograms["conv/weight"], rows_of(found.weights)["conv/weight"]
    steps = np.round(np.asarray(KERNEL / row["scale"])).astype(int)
    assert (histogram.first, histogram.width, histogram.counts.size) == (-127, 1, 255)
    np.testing.assert_array_equal(histogram.counts, np.bincount(steps.ravel() + 127, minlength=255))
    np.testing.assert_allclose(histogram.centres, np.arange(-127, 128) * row["scale"], rtol=1e-6)
    assert histogram.zeros == KERNEL.size // 4
    assert histogram.percent(histogram.vanished) == row["under half a step %"]


def test_every_element_of_every_batch_is_counted_once(found):
    assert found.histograms["input_0"].counts.sum() == X.size
    assert found.histograms["conv/weight"].counts.sum() == KERNEL.size
    halves = fc.range_statistics(net, PARAMS, [X[:2], X[2:]], CONFIG)
    for name, histogram in found.histograms.items():
        np.testing.assert_array_equal(halves.histograms[name].counts, histogram.counts)


def test_activations_beyond_the_calibrated_range_are_clipped():
    calibration = fc.calibrate(net, PARAMS, [jnp.clip(X, -1, 1)], CONFIG)
    found = fc.range_statistics(net, PARAMS, [X], CONFIG, calibration)
    histogram, row = found.histograms["input_0"], rows_of(found.activations)["input_0"]
    half = row["scale"] / 2
    assert (row["min"], row["max"]) == (-1, 1)
    assert histogram.below == pytest.approx(np.sum(-1 - half > X), abs=1)
    assert histogram.above == pytest.approx(np.sum(1 + half < X), abs=1)
    assert histogram.counts.sum() + histogram.below + histogram.above == X.size
    assert row["clipped %"] == histogram.percent(histogram.below + histogram.above) > 10


@pytest.mark.parametrize(("bits", "symmetric"), [(16, False), (12, True), (9, False), (2, True)])
def test_wide_grids_share_bins(bits, symmetric):
    config = fc.QuantConfig(weight_bits=None, act_bits=bits, act_symmetric=symmetric)
    histogram = fc.range_statistics(net, PARAMS, [X], config).histograms["input_0"]
    assert histogram.counts.size <= 257
    assert histogram.counts.sum() + histogram.below + histogram.above == X.size
    step = histogram.width * histogram.scale
    inside = np.sum((histogram.centres[0] - step <= X) & (histogram.centres[-1] + step >= X))
    assert inside == X.size
    mean = np.sum(histogram.centres * histogram.counts) / X.size
    assert mean == pytest.approx(float(X.mean()), abs=step)


def test_channels_have_their_five_numbers(found):
    rows = np.asarray(KERNEL).reshape(-1, 4).T
    wanted = np.quantile(rows, (0, 0.25, 0.5, 0.75, 1), axis=1).T
    np.testing.assert_allclose(found.channels["conv/weight"], wanted, rtol=1e-6)
    row = rows_of(found.weights)["conv/weight"]
    peaks = np.abs(rows).max(1)
    assert row["channels"] == 4
    assert row["max/median"] == pytest.approx(peaks.max() / np.median(peaks[peaks > 0]))
    box = rows_of(found.boxes())["conv/weight"]
    wanted = np.quantile(peaks[peaks > 0], (0, 0.25, 0.5, 0.75, 1))
    np.testing.assert_allclose(list(box.values())[2:], wanted, rtol=1e-6)


def test_each_turn_of_a_scan_has_a_row():
    w = jnp.asarray(RNG.normal(size=(3, 4, 4)) * np.array([1, 2, 4])[:, None, None], jnp.float32)
    found = fc.range_statistics(stacked, {"w": w}, [X[:2, 0, :4].reshape(4, 4)], CONFIG)
    names = [f"w/weight[{turn}]" for turn in range(3)]
    assert found.weights.column("name") == names
    np.testing.assert_array_equal(found.weights.column("max"), w.max((1, 2)))
    for turn, name in enumerate(names):
        np.testing.assert_array_equal(found.channels[name][:, -1], w[turn].max(0))


def test_channels_with_grids_of_their_own_have_no_zero_point_in_common():
    config = fc.QuantConfig(weight_granularity="per_channel", weight_symmetric=False)
    found = fc.range_statistics(net, PARAMS, [X], config)
    assert rows_of(found.weights)["conv/weight"]["zero point"] is None
    assert found.histograms["conv/weight"].counts.sum() == KERNEL.size


def test_what_stays_in_float_and_what_no_batch_reached_has_no_row():
    def branches(params, x):
        return jax.lax.cond(x.sum() > 0, lambda: x @ params["a"], lambda: x @ params["b"])

    params = {"a": HEAD, "b": 2 * HEAD}
    x = jnp.ones((2, 4))
    config = fc.QuantConfig(act_bits=None)
    calibration = fc.calibrate(branches, params, [x, -x], config)
    found = fc.range_statistics(branches, params, [x], config, calibration)
    assert found.weights.column("leaf") == ["a"]
    assert len(found.activations) == 0
    assert set(found.histograms) == {"a/weight"}


def test_a_weight_of_zeros_has_no_ratio():
    params = {**PARAMS, "head": {"kernel": jnp.zeros_like(HEAD)}}
    row = rows_of(fc.range_statistics(net, params, [X], CONFIG).weights)["head/weight"]
    assert (row["max/median"], row["scale"], row["SQNR dB"]) == (None, 1.0, float("inf"))


def test_no_batch_is_an_error():
    with pytest.raises(CalibrationError) as error:
        fc.range_statistics(net, PARAMS, [], CONFIG)
    assert str(error.value) == (
        "range statistics need at least one batch: batches is empty or already consumed. "
        "What to do: pass a list of inputs, or a fresh generator."
    )
