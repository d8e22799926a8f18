"""Bias correction: each corrected layer has its float mean again, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from by_hand import changed
from flaxcle import QuantConfig, calibrate, correct_bias, fake_quant
from flaxcle.compare import sqnr
from flaxcle.errors import CalibrationError
from zoo import build

RNG = np.random.default_rng(0)
CONFIG = QuantConfig(weight_bits=4, act_bits=6)


def array(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def per_row(bias: jax.Array, rank: int) -> jax.Array:
    return bias.reshape((1,) * (rank - bias.ndim) + bias.shape)


def add(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + per_row(bias, x.ndim)


def conv(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def batch_norm(p: Any, x: jax.Array) -> jax.Array:
    factor = per_row(p["scale"] / jnp.sqrt(p["var"] + 1e-5), x.ndim)
    return (x - per_row(p["mean"], x.ndim)) * factor + per_row(p["bias"], x.ndim)


def norm(n: int) -> dict[str, np.ndarray]:
    return {"scale": array(n), "var": array(n) ** 2, "mean": array(n), "bias": array(n)}


IMAGE = (16, 5, 5, 3)
# Function, params, input shape, the bias that must have changed, the axes over which the mean is.
SINGLE: dict[str, Any] = {
    "dense": (
        lambda p, x: add(x @ p["w"], p["b"]), {"w": array(6, 4), "b": array(4)}, (64, 6), "b", 0,
    ),
    "dense with one output": (
        lambda p, x: add(x @ p["w"], p["b"]), {"w": array(6, 1), "b": array(1)}, (64, 6), "b", 0,
    ),
    "bias of one number": (
        lambda p, x: x @ p["w"] + p["b"], {"w": array(6, 4), "b": array()}, (64, 6), "b", (0, 1),
    ),
    "bias with axes of one": (
        lambda p, x: x @ p["w"] + p["b"], {"w": array(6, 4), "b": array(1, 4)}, (64, 6), "b", 0,
    ),
    "conv": (
        lambda p, x: add(conv(x, p["w"]), p["b"]),
        {"w": array(3, 3, 3, 4), "b": array(4)}, IMAGE, "b", (0, 1, 2),
    ),
    "norm behind a conv without bias": (
        lambda p, x: batch_norm(p["norm"], conv(x, p["w"])),
        {"w": array(3, 3, 3, 4), "norm": norm(4)}, IMAGE, "norm/bias", (0, 1, 2),
    ),
    "dense general": (
        lambda p, x: add(jnp.einsum("bd,dhk->bhk", x, p["w"]), p["b"]),
        {"w": array(6, 2, 3), "b": array(2, 3)}, (64, 6), "b", 0,
    ),
    "transposed bias": (
        lambda p, x: add(jnp.einsum("bd,dhk->bhk", x, p["w"]), p["b"].T),
        {"w": array(6, 2, 3), "b": array(3, 2)}, (64, 6), "b", 0,
    ),
    "weight on the left": (
        lambda p, x: p["w"] @ x + p["b"][:, None],
        {"w": array(4, 6), "b": array(4)}, (6, 64), "b", 1,
    ),
}  # fmt: skip


@pytest.fixture
def wide() -> Iterator[None]:
    """In float64 no value lies so near to a tie that adding in another order moves it."""
    with jax.enable_x64(True):
        yield


def as_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def output_mean(fn: Any, params: Any, x: Any, axes: Any, config: QuantConfig | None) -> Any:
    """The mean of a layer's result, in float or quantized."""
    if config is None:
        return np.mean(fn(params, x), axes)
    calibration = calibrate(fn, params, [x], config)
    return np.mean(fake_quant(fn, config, calibration)(params, x), axes)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", SINGLE)
def test_a_layer_has_its_float_mean_again(name: str) -> None:
    fn, params, shape, bias, axes = SINGLE[name]
    params, x = as_jax(params), jnp.asarray(array(*shape))
    config = QuantConfig(weight_bits=3, act_bits=None)
    corrected = correct_bias(fn, params, [x], config)
    assert changed(params, corrected) == {bias}
    want = output_mean(fn, params, x, axes, None)
    np.testing.assert_allclose(
        output_mean(fn, corrected, x, axes, config), want, rtol=1e-9, atol=1e-9
    )
    off = np.abs(output_mean(fn, params, x, axes, config) - want).max()
    assert off > 1e-3


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", SINGLE)
def test_nothing_to_correct_without_rounding(name: str) -> None:
    fn, params, shape, _, _ = SINGLE[name]
    params, x = as_jax(params), jnp.asarray(array(*shape))
    corrected = correct_bias(fn, params, [x], QuantConfig(weight_bits=None, act_bits=None))
    for one, two in zip(jax.tree.leaves(corrected), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12, atol=1e-12)


def chain(p: Any, x: jax.Array) -> tuple[jax.Array, ...]:
    """Every layer's result, so that each mean can be read."""
    a = add(conv(x, p["a"]["w"]), p["a"]["b"])
    b = batch_norm(p["norm"], conv(jax.nn.relu(a), p["b"]["w"]))
    c = add(jax.nn.relu(b).mean((1, 2)) @ p["c"]["w"], p["c"]["b"])
    return a, b, c


CHAIN = {
    "a": {"w": array(3, 3, 3, 6), "b": array(6)},
    "b": {"w": array(3, 3, 6, 8)},
    "norm": norm(8),
    "c": {"w": array(8, 4), "b": array(4)},
}


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("name", ["dense", "conv", "norm behind a conv without bias"])
def test_rounded_weights_get_the_means_of_the_reference(name: str) -> None:
    fn, params, shape, _, axes = SINGLE[name]
    params, x, config = as_jax(params), jnp.asarray(array(*shape)), QuantConfig(act_bits=None)
    rounded = params | {"w": jnp.floor(params["w"] * 4) / 4}
    wanted = output_mean(fn, params, x, axes, None)
    ranges = calibrate(fn, params, [x], config)

    def mean(corrected: Any) -> np.ndarray:
        return np.mean(fake_quant(fn, config, ranges)(corrected, x), axes)

    restored = correct_bias(fn, rounded, [x], config, reference=params)
    np.testing.assert_allclose(mean(restored), wanted, rtol=1e-9, atol=1e-9)
    assert np.abs(mean(correct_bias(fn, rounded, [x], config)) - wanted).max() > 1e-3


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("act_bits", [None, 8])
def test_all_layers_of_a_network_on_the_same_batch(act_bits: int | None) -> None:
    """Exactly without rounded activations; with them the outputs' own rounding remains."""
    params, x = as_jax(CHAIN), jnp.asarray(array(*IMAGE))
    config = QuantConfig(weight_bits=4, act_bits=act_bits)
    corrected = correct_bias(chain, params, [x], config)
    assert changed(params, corrected) == {"a/b", "norm/bias", "c/b"}
    qfn = jax.jit(fake_quant(chain, config, calibrate(chain, params, [x], config)))
    means = [
        [leaf.mean(tuple(range(leaf.ndim - 1))) for leaf in outputs]
        for outputs in (jax.jit(chain)(params, x), qfn(corrected, x), qfn(params, x))
    ]
    for want, got, off in zip(*means, strict=True):
        if act_bits is None:
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
        assert np.linalg.norm(got - want) < 0.3 * np.linalg.norm(off - want)


@pytest.mark.usefixtures("wide")
def test_the_input_is_rounded_while_errors_are_measured() -> None:
    """All error is the input's: 0.4 rounds to 0 on the grid of one step per unit."""
    fn = lambda p, x: add(x @ p["w"], p["b"])  # noqa: E731
    params = as_jax({"w": np.ones((1, 1)), "b": np.zeros(1)})
    x = jnp.asarray([[0.0], [3.0], [0.4], [0.4]])
    corrected = correct_bias(fn, params, [x], QuantConfig(weight_bits=None, act_bits=2))
    np.testing.assert_allclose(corrected["b"], [0.2], rtol=1e-9)


def stacked(p: Any, x: jax.Array) -> jax.Array:
    def body(x: jax.Array, layer: Any) -> tuple[jax.Array, jax.Array]:
        y = add(x @ layer["w"], layer["b"])
        return jnp.tanh(y), y

    return jax.lax.scan(body, x, p)[1]


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("depth", [1, 3])
def test_stacked_layers_are_corrected_one_by_one(depth: int) -> None:
    params = as_jax({"w": array(depth, 5, 5), "b": array(depth, 5)})
    x, config = jnp.asarray(array(64, 5)), QuantConfig(weight_bits=3, act_bits=None)
    corrected = correct_bias(stacked, params, [x], config)
    assert changed(params, corrected) == {"b"}
    qfn = fake_quant(stacked, config, calibrate(stacked, params, [x], config))
    want = stacked(params, x).mean(1)
    np.testing.assert_allclose(qfn(corrected, x).mean(1), want, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("wide")
def test_loops_in_loops_share_a_bias_over_the_inner_one_only() -> None:
    """A scan of two layers, each applied in two turns: the depth equals the number of turns."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        def layer(x: jax.Array, q: Any) -> tuple[jax.Array, jax.Array]:
            def turn(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
                y = add(x @ q["w"], q["b"])
                return jnp.tanh(y), y

            return jax.lax.scan(turn, x, None, length=2)

        return jax.lax.scan(layer, x, p)[1]

    params = as_jax({"w": array(2, 5, 5), "b": array(2, 5)})
    x, config = jnp.asarray(array(64, 5)), QuantConfig(weight_bits=3, act_bits=None)

    shift = correct_bias(fn, params, [x], config)["b"] - params["b"]
    separate = as_jax({f"l{k}": {"w": params["w"][k], "b": params["b"][k]} for k in (0, 1)})

    def rows(p: Any, x: jax.Array) -> Any:
        for name in ("l0", "l0", "l1", "l1"):
            x = jnp.tanh(add(x @ p[name]["w"], p[name]["b"]))
        return x

    want = correct_bias(rows, separate, [x], config)
    for k in (0, 1):
        np.testing.assert_allclose(
            shift[k], want[f"l{k}"]["b"] - params["b"][k], rtol=1e-9, atol=1e-9
        )


@pytest.mark.usefixtures("wide")
def test_a_layer_applied_twice_takes_the_mean_of_its_errors() -> None:
    fn = lambda p, x, y: (add(x @ p["w"], p["b"]), add(y @ p["w"], p["b"]))  # noqa: E731
    params, config = as_jax({"w": array(6, 4), "b": array(4)}), QuantConfig(act_bits=None)
    x, y = jnp.asarray(array(32, 6)), jnp.asarray(3 + array(32, 6))
    alone = [
        correct_bias(lambda p, x: add(x @ p["w"], p["b"]), params, [z], config)["b"] for z in (x, y)
    ]
    both = correct_bias(fn, params, [(x, y)], config)["b"]
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, rtol=1e-9)


def branches(p: Any, x: jax.Array) -> jax.Array:
    take = lambda q: lambda: add(x @ q["w"], q["b"])  # noqa: E731
    return jax.lax.cond(x.sum() > 0, take(p["up"]), take(p["down"]))


@pytest.mark.usefixtures("wide")
def test_branches_are_corrected_by_the_batches_that_take_them() -> None:
    params = as_jax({k: {"w": array(6, 4), "b": array(4)} for k in ("up", "down")})
    up, down = (jnp.asarray(s * np.abs(array(32, 6))) for s in (1, -1))
    config = QuantConfig(weight_bits=3, act_bits=None)
    corrected = correct_bias(branches, params, [up, down, down], config)
    assert changed(params, corrected) == {"up/b", "down/b"}
    qfn = fake_quant(branches, config, calibrate(branches, params, [up, down], config))
    for x in (up, down):
        want = branches(params, x).mean(0)
        np.testing.assert_allclose(qfn(corrected, x).mean(0), want, rtol=1e-9)


@pytest.mark.usefixtures("wide")
def test_rounding_into_another_branch_gives_no_nan() -> None:
    """0.4 + 0.4 is positive, but rounds to zero: no float mean is known for the branch taken."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        take = lambda q: lambda: add(x @ q["w"], q["b"])  # noqa: E731
        chosen = jax.lax.cond(x[0, 0] > 0, take(p["up"]), take(p["down"]))
        return add(chosen @ p["last"]["w"], p["last"]["b"])

    params = as_jax({k: {"w": array(1, 1), "b": array(1)} for k in ("up", "down", "last")})
    batches = [jnp.asarray([[v], [3.0], [0.0]]) for v in (0.4, -1.0, 1.0)]
    config = QuantConfig(weight_bits=None, act_bits=2)
    corrected = correct_bias(fn, params, batches, config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(corrected))


@pytest.mark.usefixtures("wide")
def test_batches_weigh_by_their_size_and_may_be_a_generator() -> None:
    """With weights alone rounded the error is linear in the input, so any cut gives the same."""
    fn, params, shape, _, _ = SINGLE["dense"]
    params, x = as_jax(params), jnp.asarray(array(*shape))
    config = QuantConfig(weight_bits=3, act_bits=None)
    whole = correct_bias(fn, params, [x], config)["b"]
    for batches in ([x[:48], x[48:]], (x[k : k + 30] for k in (0, 30, 60)), [(x[:1],), (x[1:],)]):
        np.testing.assert_allclose(correct_bias(fn, params, batches, config)["b"], whole, rtol=1e-9)


UNTOUCHED = {
    "position embedding": lambda p, x: x @ p["w"] + p["b"][:, None],
    "learned query": lambda p, x: (x + p["b"][:, None]) @ p["w"],
    "behind an activation": lambda p, x: jax.nn.relu(x @ p["w"]) + p["b"][:, None],
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_is_added_elsewhere_is_no_bias(name: str) -> None:
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"w": array(6, 4), "b": array(9)})
    x = jnp.asarray(array(9, 6), jnp.float32)
    assert changed(params, correct_bias(UNTOUCHED[name], params, [x], CONFIG)) == set()


def test_dtype_and_container_are_kept() -> None:
    module = nn.Dense(4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = jnp.asarray(array(32, 6), jnp.bfloat16)
    variables = module.init(jax.random.key(0), x)
    corrected = correct_bias(module.apply, variables, [x], QuantConfig(weight_bits=2))
    assert changed(variables, corrected) == {"params/bias"}
    network = build("mlp_nnx")
    assert changed(
        network.params, correct_bias(network.fn, network.params, [network.inputs], CONFIG)
    ) == {f"layers/layers/{k}/bias" for k in (0, 2, 4)}


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batch_is_an_error(batches: Any) -> None:
    fn, params, _, _, _ = SINGLE["dense"]
    with pytest.raises(CalibrationError, match="calibration needs at least one batch"):
        correct_bias(fn, as_jax(params), batches, CONFIG)


# Convolutions, depthwise, live norms, skips, gates, a scan: networks whose layers have biases.
IMPROVED = ("vgg", "conv1d", "mobilenetv1_relu6", "resnet18_folded", "squeeze_excite", "scan_stack")


@pytest.mark.slow
@pytest.mark.parametrize("bits", [5, 6])
def test_correction_helps_on_images_that_it_has_not_seen(bits: int) -> None:
    """The SQNR summed over the networks, on eight inputs apart from those of the correction."""
    gain, config = 0.0, QuantConfig(weight_bits=bits, act_bits=8)
    for name in IMPROVED:
        network = build(name)
        shape = (64, *network.inputs[0].shape[1:])
        x = jnp.asarray(np.random.default_rng(5).normal(size=shape), jnp.float32)
        seen, unseen = x[:56], x[56:]
        qfn = jax.jit(
            fake_quant(network.fn, config, calibrate(network.fn, network.params, [seen], config))
        )
        corrected = correct_bias(network.fn, network.params, [seen], config)
        clean = network.fn(network.params, unseen)
        after, before = (sqnr(clean, qfn(p, unseen)) for p in (corrected, network.params))
        gain += after - before
    assert gain > 10
