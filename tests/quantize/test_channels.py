"""What calibration records of each weight's input, against NumPy on the input itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import QuantConfig, calibrate
from flaxcle.jaxpr import trace
from flaxcle.paths import named_leaves
from flaxcle.quantize.calibrate import watched
from flaxcle.quantize.channels import ChannelRange
from zoo import networks

CONFIG = QuantConfig()
RNG = np.random.default_rng(0)


def draw(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape) * np.exp2(RNG.normal(size=shape[-1])), jnp.float32)


def record(fn: Any, params: Any, *batches: Any) -> dict[str, ChannelRange]:
    return calibrate(fn, params, batches, CONFIG).channels


def check(found: ChannelRange, x: Any, axes: tuple[int, ...]) -> None:
    """`x`: the input as (everything else, *axes of the weight)."""
    size = np.abs(np.asarray(x, np.float64))
    assert found.axes == axes
    assert found.peak.dtype == found.mean.dtype == jnp.float32
    np.testing.assert_allclose(found.peak, size.max(0), rtol=1e-6)
    np.testing.assert_allclose(found.mean, size.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("equation", "shape", "axes", "order"),
    [
        ("btd,dh->bth", (5, 4), (0,), (0, 1, 2)),
        ("btd,hd->bth", (4, 5), (1,), (0, 1, 2)),
        ("bhk,hkd->bd", (3, 5, 4), (0, 1), (0, 1, 2)),
        ("bhk,dkh->bd", (4, 5, 3), (1, 2), (0, 2, 1)),
        ("ebd,edh->ebh", (3, 5, 4), (0, 1), (1, 0, 2)),
        ("dh,btd->hbt", (5, 4), (0,), (0, 1, 2)),
    ],
)
def test_matrix_products(equation, shape, axes, order):
    x, w = draw(2, 3, 5), draw(*shape)
    if equation.startswith("ebd"):
        x = draw(3, 2, 5)
    first = equation.startswith("dh")
    fn = lambda p, x: jnp.einsum(equation, *((p["w"], x) if first else (x, p["w"])))  # noqa: E731
    ordered = np.asarray(x).transpose(order)
    flat = ordered.reshape(-1, *(shape[axis] for axis in axes))
    check(record(fn, {"w": w}, x)["w"], flat, axes)


def convolve(x: jax.Array, w: jax.Array, groups: int) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups
    )


def test_a_convolution_by_its_features():
    x = draw(2, 4, 4, 3)
    found = record(lambda p, x: convolve(x, p["w"], 1), {"w": draw(3, 3, 3, 5)}, x)["w"]
    check(found, np.asarray(x).reshape(-1, 3), (2,))


@pytest.mark.parametrize(("groups", "fan"), [(2, 3), (3, 1), (6, 1), (6, 2)])
def test_a_grouped_convolution_reads_other_inputs_for_other_outputs(groups, fan):
    x = draw(2, 4, 4, 6)
    w = draw(3, 3, 6 // groups, groups * fan)
    found = record(lambda p, x: convolve(x, p["w"], groups), {"w": w}, x)["w"]
    flat = np.asarray(x).reshape(-1, groups, 6 // groups)
    each = np.stack([flat[:, out // fan] for out in range(groups * fan)], axis=-1)
    check(found, each, (2, 3))


def test_layers_of_a_scan_have_a_record_each():
    x, w = draw(7, 4), draw(3, 4, 4)
    step = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
    found = record(lambda p, x: jax.lax.scan(step, x, p["w"])[0], {"w": w}, x)["w"]
    inputs = [x]
    for layer in w[:-1]:
        inputs.append(step(inputs[-1], layer)[0])
    check(found, np.stack(inputs, axis=1), (0, 1))


def test_turns_of_a_loop_that_share_a_weight_share_a_record():
    x, w = draw(7, 4), draw(4, 4)
    fn = lambda p, x: jax.lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x, length=3)[0]  # noqa: E731
    inputs = [x, jnp.tanh(x @ w), jnp.tanh(jnp.tanh(x @ w) @ w)]
    check(record(fn, {"w": w}, x)["w"], np.concatenate(inputs), (0,))


def test_readers_of_one_weight_share_a_record():
    x, w = draw(7, 4), draw(4, 4)
    found = record(lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"], {"w": w}, x)["w"]
    check(found, np.concatenate([x, jnp.tanh(x @ w)]), (0,))


def test_a_weight_that_is_read_along_different_axes_has_no_record():
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T @ p["v"]  # noqa: E731
    assert set(record(fn, {"w": draw(4, 3), "v": draw(4, 2)}, draw(5, 4))) == {"v"}


def test_a_weight_that_is_computed_has_no_record():
    fn = lambda p, x: x @ (p["w"] * p["g"])  # noqa: E731
    assert record(fn, {"w": draw(4, 3), "g": draw(4, 3)}, draw(5, 4)) == {}


def test_integers_and_products_of_data_have_no_record():
    def fn(params: Any, x: jax.Array, n: jax.Array) -> jax.Array:
        return (x @ x.T) @ params["w"] + (n @ params["n"]).astype(jnp.float32)

    params = {"w": draw(5, 2), "n": jnp.ones((3, 2), jnp.int32)}
    assert set(record(fn, params, (draw(5, 4), jnp.ones((5, 3), jnp.int32)))) == {"w"}


def test_batches_of_different_sizes_count_by_their_data():
    batches = [draw(3, 4), draw(8, 4), draw(1, 4)]
    found = record(lambda p, x: x @ p["w"], {"w": draw(4, 2)}, *batches)["w"]
    check(found, np.concatenate(batches), (0,))


def test_a_branch_counts_only_the_batches_that_took_it():
    def fn(params: Any, x: jax.Array) -> jax.Array:
        branches = (lambda x: x @ params["a"], lambda x: (2 * x) @ params["b"])
        return jax.lax.cond(x[0, 0] > 0, *branches, x)

    batches = [draw(3, 4).at[0, 0].set(sign) for sign in (1.0, -1.0, 1.0)]
    found = record(fn, {"a": draw(4, 2), "b": draw(4, 2)}, *batches)
    check(found["a"], np.concatenate(batches[::2]), (0,))
    check(found["b"], 2 * np.asarray(batches[1]), (0,))


def test_half_precision_is_measured_in_float32():
    x = draw(64, 4).astype(jnp.bfloat16)
    found = record(lambda p, x: x @ p["w"], {"w": draw(4, 2).astype(jnp.bfloat16)}, x)["w"]
    check(found, x, (0,))


@pytest.mark.parametrize("name", ["vit", "moe", "llama_gqa", "llama_scan_remat", "gpt_nnx"])
def test_records_have_the_shape_of_their_weight(name):
    network = networks()[name]()
    calibration = calibrate(network.fn, network.params, [network.inputs], CONFIG)
    assert calibration.channels
    leaves = named_leaves(network.params)
    for path, found in calibration.channels.items():
        wanted = tuple(leaves[path].shape[axis] for axis in found.axes)
        assert found.peak.shape == found.mean.shape == wanted
        assert (found.mean <= found.peak).all()
        assert leaves[path].shape != wanted


def test_averages_take_the_place_of_peaks():
    calibration = calibrate(lambda p, x: x @ p["w"], {"w": draw(4, 2)}, [draw(5, 4)], CONFIG)
    averaged = calibration.averaged()
    np.testing.assert_array_equal(averaged.channels["w"].peak, calibration.channels["w"].mean)
    assert averaged.low == calibration.low


def test_an_activation_whose_channels_are_looked_at_is_not_looked_at_again():
    def fn(p: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x)
        return hidden + hidden @ p["w"]

    params, x = {"w": draw(5, 5)}, draw(7, 5)
    program = trace(lambda p, x: watched(fn, "minmax", p, (x,)), params, x)
    reductions = [op for op in program.graph.flat if op.primitive.startswith("reduce_m")]
    sizes = Counter((op.primitive, op.inputs[0].shape) for op in reductions)
    whole, channels, ends = (35,), (7, 5), (5,)  # by shape; hidden by channel
    assert sizes == {
        (name, shape): count
        for name in ("reduce_min", "reduce_max")
        for shape, count in ((whole, 3), (channels, 1), (ends, 1))
    }
