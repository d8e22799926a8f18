"""Calibration: ranges equal NumPy's on the intermediates, whatever the batches look like."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxcle import Calibration, QuantConfig, calibrate
from flaxcle.errors import CalibrationError, WeightError
from flaxcle.tables import Table
from zoo import build

RNG = np.random.default_rng(0)
PARAMS = {
    "first": {"kernel": RNG.normal(size=(4, 8)), "bias": RNG.normal(size=8)},
    "second": {"kernel": RNG.normal(size=(8, 3)), "bias": RNG.normal(size=3)},
}
PARAMS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
DATA = RNG.normal(size=(70, 4)).astype(np.float32)
MINMAX = QuantConfig()


def mlp(params: Any, x: jax.Array) -> jax.Array:
    x = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    return x @ params["second"]["kernel"] + params["second"]["bias"][None]


def intermediates(x: np.ndarray) -> dict[str, np.ndarray]:
    first, second = (
        {k: np.asarray(v) for k, v in PARAMS[name].items()} for name in ("first", "second")
    )
    hidden = np.maximum(x @ first["kernel"] + first["bias"], 0)
    output = hidden @ second["kernel"] + second["bias"]
    return {"input_0": x, "second/input": hidden, "output_0": output}


def assert_ranges(calibration: Calibration, want: dict[str, tuple[float, float]]) -> None:
    assert set(calibration.low) == set(calibration.high) == set(want)
    for name, (low, high) in want.items():
        got = (calibration.low[name], calibration.high[name])
        np.testing.assert_allclose(got, (low, high), rtol=1e-5, atol=1e-6, err_msg=name)


def extremes(x: np.ndarray) -> dict[str, tuple[float, float]]:
    return {name: (value.min(), value.max()) for name, value in intermediates(x).items()}


BATCHES = {
    "one batch": [DATA],
    "equal batches": np.split(DATA, 7),
    "a partial last batch": [DATA[:32], DATA[32:64], DATA[64:]],
    "jax arrays": [jnp.asarray(DATA[:35]), jnp.asarray(DATA[35:])],
    "tuples": [(DATA[:35],), (DATA[35:],)],
    "single rows": list(DATA[:, None]),
}


@pytest.mark.parametrize("name", BATCHES)
def test_minmax_is_that_of_the_intermediates(name: str) -> None:
    assert_ranges(calibrate(mlp, PARAMS, BATCHES[name], MINMAX), extremes(DATA))


def test_batches_may_be_a_generator_and_are_read_once() -> None:
    given_out = []

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, 70, 10):
            given_out.append(start)
            yield DATA[start : start + 10]

    assert_ranges(calibrate(mlp, PARAMS, batches(), MINMAX), extremes(DATA))
    assert given_out == list(range(0, 70, 10))


def test_moving_average_over_batches() -> None:
    parts = [DATA[:32], DATA[32:64], DATA[64:]]
    want = extremes(parts[0])
    for part in parts[1:]:
        new = extremes(part)
        want = {
            name: tuple(0.7 * a + 0.3 * b for a, b in zip(old, new[name], strict=True))
            for name, old in want.items()
        }
    config = QuantConfig(act_observer="moving_average", momentum=0.7)
    assert_ranges(calibrate(mlp, PARAMS, parts, config), want)


def test_percentile_is_numpys_within_a_bin() -> None:
    config = QuantConfig(act_observer="percentile", percentile=90.0)
    calibration = calibrate(mlp, PARAMS, np.split(DATA, 7), config)
    for name, value in intermediates(DATA).items():
        width = 1.01 * 2.0 ** np.ceil(np.log2(np.abs(value).max())) / 2048
        low = np.percentile(value, 5, method="inverted_cdf")
        high = -np.percentile(-value, 5, method="inverted_cdf")
        assert low - width <= calibration.low[name] <= low + 1e-5
        assert high - 1e-5 <= calibration.high[name] <= high + width


def test_mse_narrows_for_few_bits_only() -> None:
    ranges = [
        calibrate(mlp, PARAMS, [DATA], QuantConfig(act_observer="mse", act_bits=bits))
        for bits in (2, 4, 16)
    ]
    widths = [float(r.high["second/input"] - r.low["second/input"]) for r in ranges]
    assert widths[0] < widths[1] < widths[2]
    assert_ranges(ranges[2], {k: (min(a, 0), max(b, 0)) for k, (a, b) in extremes(DATA).items()})


def test_several_inputs_and_outputs_and_integers() -> None:
    def fn(params: Any, tree: Any, ids: jax.Array) -> Any:
        left = tree["x"] @ params["a"]
        right = params["table"][ids] @ params["a"]
        return {"sum": left + right, "ids": ids, "product": left * right}

    params = {"a": jnp.eye(3), "table": jnp.asarray(RNG.normal(size=(7, 3)), jnp.float32)}
    batches = [({"x": RNG.normal(size=(5, 3)).astype("f")}, np.arange(5)) for _ in range(3)]
    calibration = calibrate(fn, params, batches, MINMAX)
    assert {"input_0", "output_1", "output_2"} <= set(calibration.low)
    assert not {"input_1", "output_0"} & set(calibration.low)  # the token ids
    x = np.concatenate([tree["x"] for tree, _ in batches])
    assert float(calibration.high["input_0"]) == x.max()


def test_ranges_in_a_scan_are_per_iteration() -> None:
    def fn(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (x @ w, None), x, params)[0]

    params = jnp.asarray(RNG.normal(size=(5, 4, 4)), jnp.float32)
    calibration = calibrate(fn, params, np.split(DATA, 7), MINMAX)
    (name,) = set(calibration.low) - {"input_0", "output_0"}
    x, want = DATA, []
    for w in np.asarray(params):
        want.append((x.min(), x.max()))
        x = x @ w
    got = np.stack([calibration.low[name], calibration.high[name]], 1)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@given(parts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@settings(deadline=None, max_examples=5)
def test_the_cut_into_batches_does_not_matter(parts: list[int]) -> None:
    rows = DATA[: sum(parts)]
    batches = np.split(rows, np.cumsum(parts)[:-1])
    one, many = (calibrate(mlp, PARAMS, data, MINMAX) for data in ([rows], batches))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batch_is_an_error(batches: Any) -> None:
    with pytest.raises(CalibrationError) as error:
        calibrate(mlp, PARAMS, batches, MINMAX)
    assert str(error.value) == (
        "calibration needs at least one batch: batches is empty or already consumed. "
        "What to do: pass a list of inputs, or a fresh generator."
    )


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "mse"])
def test_a_branch_that_no_batch_took_is_an_error_that_names_it(observer: Any) -> None:
    network = build("cond_branches")
    config = QuantConfig(act_observer=observer)
    up, down = (jnp.abs(network.inputs[0]), -jnp.abs(network.inputs[0]))
    layer = {}
    for name, x in (("up", up), ("down", down)):
        with pytest.raises(CalibrationError) as error:
            calibrate(network.fn, network.params, [x, x], config)
        layer[name] = str(error.value)
    texts = {
        f"no calibration batch reached these quantizers: '{name}/input'. "
        "What to do: add batches that take every branch."
        for name in ("wa", "wb")
    }
    assert set(layer.values()) == texts
    calibration = calibrate(network.fn, network.params, [up, down], config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(calibration))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_weight_is_an_error_that_names_it(bad: float) -> None:
    kernel = PARAMS["second"]["kernel"].at[2, 1].set(bad)
    params = PARAMS | {"second": PARAMS["second"] | {"kernel": kernel}}
    with pytest.raises(WeightError) as error:
        calibrate(mlp, params, [DATA], MINMAX)
    assert str(error.value) == (
        "can't quantize a weight that holds NaN or infinity: 'second/kernel', which "
        "'second/weight' reads. What to do: check the training run or the checkpoint."
    )


@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "mse"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_broken_activation_in_any_batch_is_an_error(
    observer: Any, bad: float, position: int
) -> None:
    batches = [DATA[:5], DATA[5:10], DATA[10:15].copy()]
    batches[2][1, 1] = bad
    batches.insert(position, batches.pop())
    with pytest.raises(CalibrationError) as error:
        calibrate(mlp, PARAMS, batches, QuantConfig(act_observer=observer))
    text = str(error.value)
    assert text.startswith("the float network gives NaN or infinite activations: 'input_0'")
    assert text.endswith("What to do: check the params and the calibration inputs.")


def test_table_has_a_row_per_learnable_and_activation() -> None:
    table = calibrate(mlp, PARAMS, [DATA], MINMAX).table()
    assert table.columns == ("layer", "kind", "name", "min", "max")
    assert [(row["layer"], row["kind"], row["name"]) for row in table] == [
        ("first", "learnable", "bias"),
        ("first", "learnable", "kernel"),
        ("second", "learnable", "bias"),
        ("second", "learnable", "kernel"),
        ("input_0", "activation", "input_0"),
        ("second", "activation", "second/input"),
        ("output_0", "activation", "output_0"),
    ]
    want = [np.asarray(leaf) for leaf in jax.tree.leaves(PARAMS)]
    want += list(intermediates(DATA).values())
    np.testing.assert_allclose(table.column("min"), [w.min() for w in want], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(table.column("max"), [w.max() for w in want], rtol=1e-5, atol=1e-6)


def test_table_of_a_scan_shows_the_extremes_of_all_iterations() -> None:
    network = build("scan_stack")
    calibration = calibrate(network.fn, network.params, [network.inputs], MINMAX)
    row = next(row for row in calibration.table() if row["name"] == "stack/Dense_0/input")
    assert calibration.low["stack/Dense_0/input"].shape == (3,)
    assert row["min"] == float(calibration.low["stack/Dense_0/input"].min())
    assert row["max"] == float(calibration.high["stack/Dense_0/input"].max())


def test_table_goes_to_csv_and_pandas_and_back(tmp_path: Any) -> None:
    table = calibrate(mlp, PARAMS, [DATA], MINMAX).table()
    frame = table.to_pandas()
    table.to_csv(tmp_path / "calibration.csv")
    read = pd.read_csv(tmp_path / "calibration.csv")
    pd.testing.assert_frame_equal(read, frame)
    assert Table(tuple(read.columns), tuple(read.itertuples(index=False, name=None))) == table


def test_a_module_without_a_parent_has_an_empty_layer() -> None:
    params = {"params": {"kernel": jnp.eye(4)}}
    table = calibrate(lambda p, x: x @ p["params"]["kernel"], params, [DATA], MINMAX).table()
    assert table.rows[0][:3] == ("", "learnable", "kernel")


def test_calibration_is_a_pytree() -> None:
    calibration = calibrate(mlp, PARAMS, [DATA], MINMAX)
    leaves, tree = jax.tree.flatten(calibration)
    assert len(leaves) == 2 * 3 + 4 + 2 * 2
    doubled = jax.tree.map(lambda leaf: 2 * leaf, calibration)
    assert isinstance(doubled, Calibration)
    assert doubled.layers == calibration.layers
    assert float(doubled.high["output_0"]) == 2 * float(calibration.high["output_0"])
    same = jax.jit(lambda c: c)(calibration)
    assert jax.tree.structure(same) == tree
    stacked = jax.tree.map(lambda a, b: jnp.stack([a, b]), calibration, doubled)
    highs = jax.vmap(lambda c: c.high["output_0"])(stacked)
    np.testing.assert_array_equal(highs, stacked.high["output_0"])


def test_one_compilation_per_batch_shape() -> None:
    traced = []

    def fn(params: Any, x: jax.Array) -> jax.Array:
        traced.append(x.shape)
        return x @ params

    calibrate(fn, jnp.eye(4), [DATA[:16], DATA[16:32], DATA[32:48], DATA[48:]], MINMAX)
    assert sorted(set(traced)) == [(16, 4), (22, 4)]
    assert len(traced) == 3  # once for the plan
