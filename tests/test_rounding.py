"""Learned rounding: up or down on the grid, no worse than nearest, better where inputs agree."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxcle import QuantConfig, calibrate, fake_quant, round_weights
from flaxcle.errors import CalibrationError, ConfigError, WeightError
from flaxcle.jaxpr import trace
from flaxcle.paths import named_leaves
from flaxcle.quantize.grid import make_grid
from flaxcle.quantize.weights import snap_weight, weight_range
from flaxcle.rounding import moments, readers
from zoo import build

LOOK = partial(round_weights, steps=20)


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def correlated(*shape: int) -> jax.Array:
    """Samples in which the features (the last axis) go together, and all of one image."""
    rng = np.random.default_rng((1, *shape))
    common = rng.normal(size=(*shape[:-1], 1))
    if len(shape) == 4:
        common = common + 3 * rng.normal(size=(shape[0], 1, 1, 1))
    return jnp.asarray(0.3 * rng.normal(size=shape) + common + 0.5, jnp.float32)


def conv(x: jax.Array, w: jax.Array, **options: Any) -> jax.Array:
    strides, padding = options.pop("strides", (1, 1)), options.pop("padding", "SAME")
    numbers = options.pop("numbers", ("NHWC", "HWIO", "NHWC"))
    return jax.lax.conv_general_dilated(
        x, w, strides, padding, dimension_numbers=numbers, **options
    )


def looped(p: Any, x: jax.Array) -> jax.Array:
    """The same weight in every turn."""
    return jax.lax.scan(lambda x, _: (x, x @ p["w"]), x, None, length=2)[1]


def stacked(p: Any, x: jax.Array) -> jax.Array:
    """A weight and its inputs for each turn, last turn first."""
    return jax.lax.scan(lambda _, a: (_, a[0] @ a[1]), 0.0, (x, p["w"]), reverse=True)[1]


# Function, shape of the weight, input, axes of the output without its channels (and groups).
IMAGE = (8, 6, 7, 6)
LAYERS: dict[str, Any] = {
    "dense": (lambda p, x: x @ p["w"], (12, 5), (64, 12), (0,)),
    "dense on the left": (lambda p, x: p["w"] @ x.T, (5, 12), (64, 12), (1,)),
    "transposed": (lambda p, x: x @ p["w"].T, (5, 12), (64, 12), (0,)),
    "with an axis of one": (lambda p, x: x @ p["w"][0], (1, 12, 5), (64, 12), (0,)),
    "heads": (
        lambda p, x: jnp.einsum("bsd,hdk->bhsk", x, p["w"]), (2, 12, 5), (8, 9, 12), (0, 2),
    ),
    "two contracted axes": (
        lambda p, x: jnp.einsum("bhk,khd->bd", x, p["w"]), (6, 2, 5), (64, 2, 6), (0,),
    ),
    "batch dimension": (
        lambda p, x: jnp.einsum("bgd,gdk->bgk", x, p["w"]), (3, 12, 5), (64, 3, 12), (0,),
    ),
    "conv": (lambda p, x: conv(x, p["w"]), (3, 2, 6, 4), IMAGE, (0, 1, 2)),
    "conv with strides and dilation": (
        lambda p, x: conv(x, p["w"], strides=(2, 1), padding="VALID", rhs_dilation=(1, 2)),
        (3, 2, 6, 4), IMAGE, (0, 1, 2),
    ),
    "conv on a dilated, cropped image": (
        lambda p, x: conv(x, p["w"], padding=((-1, 2), (1, -1)), lhs_dilation=(2, 1)),
        (3, 2, 6, 4), IMAGE, (0, 1, 2),
    ),
    "grouped conv": (
        lambda p, x: conv(x, p["w"], feature_group_count=2), (3, 3, 3, 4), IMAGE, (0, 1, 2),
    ),
    "depthwise": (
        lambda p, x: conv(x, p["w"], feature_group_count=6), (3, 3, 1, 12), IMAGE, (0, 1, 2),
    ),
    "conv in torch's layout": (
        lambda p, x: conv(
            x.transpose(0, 3, 1, 2), p["w"], padding="VALID", numbers=("NCHW", "OIHW", "NCHW")
        ),
        (4, 6, 3, 3), IMAGE, (0, 2, 3),
    ),
    "conv over lines": (
        lambda p, x: conv(x[:, 0], p["w"], strides=(1,), numbers=("NWC", "WIO", "NWC")),
        (3, 6, 4), IMAGE, (0, 1),
    ),
    "stacked": (stacked, (3, 12, 5), (3, 64, 12), (1,)),
    "read in every turn": (looped, (12, 5), (64, 12), (0, 1)),
}  # fmt: skip
CONFIGS = {
    f"{bits} bits, {granularity}, {'' if symmetric else 'a'}symmetric, {observer}": QuantConfig(
        weight_bits=bits,
        act_bits=None,
        weight_granularity=granularity,
        weight_symmetric=symmetric,
        weight_observer=observer,
    )
    for bits in (2, 5)
    for granularity in ("per_tensor", "per_channel")
    for symmetric in (True, False)
    for observer in ("minmax", "mse")
}
FOUR = QuantConfig(weight_bits=4, act_bits=None)


def layer(name: str) -> tuple[Any, Any, jax.Array, tuple[int, ...]]:
    fn, shape, data, axes = LAYERS[name]
    return fn, {"w": array(*shape)}, correlated(*data), axes


def power(fn: Any, before: Any, after: Any, x: jax.Array, axes: Any) -> np.ndarray:
    """The mean square of each output's error."""
    return np.mean(np.asarray(fn(after, x) - fn(before, x), np.float64) ** 2, axes)


def nearest(fn: Any, params: Any, x: jax.Array, config: QuantConfig) -> Any:
    """The weights as the fake-quantized network rounds them."""
    stacks = {r.leaf: r.stack for r in readers.find_readers(trace(fn, params, x)).values()}
    return {p: s.back(snapped(s.of(params[p]), config), params[p]) for p, s in stacks.items()}


def snapped(stack: jax.Array, config: QuantConfig) -> jax.Array:
    return jax.jit(jax.vmap(lambda w: snap_weight(w, config, (0, 1))))(stack)


def on_grid(new: jax.Array, config: QuantConfig) -> None:
    top = np.abs(new).max()
    np.testing.assert_allclose(snapped(new, config), new, rtol=1e-6, atol=1e-6 * top)


def up_or_down(old: jax.Array, new: jax.Array, config: QuantConfig) -> None:
    """Each new weight is one of the two neighbours of the old one, on the old one's grid."""
    for w, rounded in zip(old, new, strict=True):
        low, high = weight_range(w, config, (0, 1))
        scale, zero, lowest, highest = make_grid(
            low, high, config.weight_bits or 8, symmetric=config.weight_symmetric
        )
        steps, exact = np.asarray(rounded / scale, np.float64), np.asarray(w / scale, np.float64)
        np.testing.assert_allclose(steps, np.rint(steps), atol=2e-3)
        clip = partial(np.clip, a_min=lowest - zero, a_max=highest - zero)
        tie = 1e-4
        assert (clip(np.floor(exact - tie)) <= np.rint(steps)).all()
        assert (np.rint(steps) <= clip(np.ceil(exact + tie))).all()


def moment(fn: Any, params: Any, data: Any, error: jax.Array) -> np.ndarray:
    """e^T C e of each output."""
    (reader,) = readers.find_readers(trace(fn, params, *data[0])).values()
    c, e = moments.second_moments(fn, params, data)["w"], reader.stack.of(error)
    return np.sort(np.ravel(jnp.einsum("lgoi,lgij,lgoj->lgo", e, c, e)))


@pytest.mark.parametrize("name", LAYERS)
def test_the_moments_give_the_power_of_every_error(name: str) -> None:
    """For a random error, against the layer itself; the data in two batches."""
    fn, params, x, axes = layer(name)
    error = array(*params["w"].shape)
    cut = [(x[:, :30],), (x[:, 30:],)] if name == "stacked" else [(x[:3],), (x[3:],)]
    want = power(fn, {"w": jnp.zeros_like(error)}, {"w": error}, x, axes)
    np.testing.assert_allclose(moment(fn, params, cut, error), np.sort(np.ravel(want)), rtol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_change_less_than_by_nearest_rounding(name: str) -> None:
    fn, params, x, axes = layer(name)
    rounded = round_weights(fn, params, [x], FOUR)
    plain = power(fn, params, nearest(fn, params, x, FOUR), x, axes)
    learned = power(fn, params, rounded, x, axes)
    assert (learned <= plain * (1 + 1e-5)).all()
    assert learned.sum() < 0.7 * plain.sum()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_quantization_finds_the_same_grid_again(config: QuantConfig) -> None:
    fn, params, x, axes = layer("grouped conv")
    rounded = LOOK(fn, params, [x], config)
    (reader,) = readers.find_readers(trace(fn, params, x)).values()
    old, new = (reader.stack.of(p["w"]) for p in (params, rounded))
    on_grid(new, config)
    up_or_down(old, new, config)
    np.testing.assert_allclose(
        jax.jit(fake_quant(fn, config, calibrate(fn, params, [x], config)))(rounded, x),
        fn(rounded, x),
        rtol=1e-4,
        atol=1e-4,
    )
    near = nearest(fn, params, x, config)
    plain, learned = (power(fn, params, p, x, axes) for p in (near, rounded))
    assert (learned <= plain * (1 + 1e-5) + 1e-9).all()


NETWORKS = ("mlp_nnx", "conv1d", "squeeze_excite", "equinox_cnn", "scan_stack", "moe", "gru")


@pytest.mark.parametrize("name", NETWORKS)
def test_laws_on_networks(name: str) -> None:
    network = build(name)
    rounded = LOOK(network.fn, network.params, [network.inputs], FOUR)
    assert jax.tree.structure(rounded) == jax.tree.structure(network.params)
    old, new = named_leaves(network.params), named_leaves(rounded)
    found = readers.find_readers(trace(network.fn, network.params, *network.inputs)).values()
    stacks = {r.leaf: r.stack for r in found}
    for path, leaf in old.items():
        assert (leaf.dtype, leaf.shape) == (new[path].dtype, new[path].shape)
        if path in stacks:
            before, after = (stacks[path].of(leaves[path]) for leaves in (old, new))
            on_grid(after, FOUR)
            up_or_down(before, after, FOUR)
        else:
            np.testing.assert_array_equal(leaf, new[path])
    assert stacks


@pytest.mark.parametrize("name", ["mlp_nnx", "conv1d", "gru"])
def test_rounding_again_changes_nothing(name: str) -> None:
    network = build(name)
    once = LOOK(network.fn, network.params, [network.inputs], FOUR)
    twice = LOOK(network.fn, once, [network.inputs], FOUR)
    for one, two in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)


UNTOUCHED = {
    "also an embedding": lambda p, x: p["w"][jnp.argmax(x, -1)] @ p["w"].T,
    "read by a norm of weights": lambda p, x: (x @ p["w"]) * jnp.sum(p["w"] ** 2),
    "an output": lambda p, x: (x @ p["w"], p["w"]),
    "two arrangements": lambda p, x: (x @ p["w"]) @ p["w"].T,
    "made of the leaf": lambda p, x: x @ jnp.tanh(p["w"]),
    "a slice": lambda p, x: x[:, :3] @ p["w"][:3],
    "reshaped": lambda p, x: x[:, :6] @ p["w"].reshape(6, 12),
    "carried by a loop": lambda p, x: jax.lax.fori_loop(
        0, 2, lambda _, wy: (-wy[0], wy[1] @ wy[0]), (p["w"], x)
    )[1],
    "in a while loop": lambda p, x: jax.lax.while_loop(
        lambda y: jnp.sum(y) > 1e9, lambda y: y @ p["w"], x
    ),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_can_not_be_rounded_alone_stays(name: str) -> None:
    params, x = {"w": array(12, 12) if "loop" in name else array(12, 6)}, correlated(16, 12)
    if name == "two arrangements":
        params = {"w": array(12, 12)}
    rounded = LOOK(UNTOUCHED[name], params, [x], FOUR)
    np.testing.assert_array_equal(rounded["w"], params["w"])


def test_a_shared_weight_is_rounded_for_all_its_readers() -> None:
    """Two inputs, read apart or as one batch of inputs with the same mean."""
    params, x = {"w": array(12, 5)}, correlated(64, 12)
    apart = LOOK(lambda p, x: (x @ p["w"], -x @ p["w"]), params, [x], FOUR)
    one = LOOK(lambda p, x: jnp.concatenate([x, -x]) @ p["w"], params, [x], FOUR)
    np.testing.assert_array_equal(apart["w"], one["w"])


def test_batches_may_be_a_generator_of_any_cut() -> None:
    fn, params, x, _ = layer("dense")
    whole = LOOK(fn, params, [x], FOUR)["w"]
    cut = LOOK(fn, params, ((x[k : k + 20],) for k in (0, 20, 40, 60)), FOUR)["w"]
    np.testing.assert_array_equal(whole, cut)


def test_a_branch_that_no_batch_takes_is_rounded_to_nearest() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.cond(x[0, 0] < 1e9, lambda: x @ p["a"], lambda: x @ p["b"])

    params, x = {"a": array(12, 5), "b": array(12, 5)}, correlated(64, 12)
    rounded = LOOK(fn, params, [x, x], FOUR)
    near = {k: snap_weight(w, FOUR, ()) for k, w in params.items()}
    np.testing.assert_allclose(rounded["b"], near["b"], rtol=1e-6)
    alone = LOOK(lambda p, x: x @ p["a"], {"a": params["a"]}, [x], FOUR)
    np.testing.assert_array_equal(rounded["a"], alone["a"])
    assert not np.allclose(rounded["a"], near["a"])


def test_without_memory_for_the_moments_rounding_is_to_nearest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fn, params, x, _ = layer("dense")
    monkeypatch.setattr(moments, "LARGEST", 12 * 12 - 1)
    rounded = LOOK(lambda *args: fn(*args), params, [x], FOUR)  # one that was not compiled before
    np.testing.assert_allclose(rounded["w"], snap_weight(params["w"], FOUR, ()), rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-42])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("observer", ["minmax", "mse"])
def test_weights_without_a_choice(value: float, symmetric: bool, observer: Any) -> None:
    """Equal weights are an end of their grid; zeros, and what is too small for a step, are zero."""
    config = QuantConfig(weight_bits=4, weight_symmetric=symmetric, weight_observer=observer)
    params, x = {"w": jnp.full((12, 5), value, jnp.float32)}, correlated(64, 12)
    rounded = LOOK(lambda p, x: x @ p["w"], params, [x], config)
    np.testing.assert_allclose(rounded["w"], snap_weight(params["w"], config, ()), rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("param_dtype", [jnp.bfloat16, jnp.float32])
def test_low_precision_keeps_the_integers(bits: int, param_dtype: Any) -> None:
    """In bfloat16 a grid value is rounded once more; its integer is found again."""
    fn = lambda p, x: x @ p["w"].astype(jnp.bfloat16)  # noqa: E731
    params, x = {"w": array(40, 30).astype(param_dtype)}, correlated(64, 40).astype(jnp.bfloat16)
    config = QuantConfig(weight_bits=bits)
    rounded = LOOK(fn, params, [x], config)["w"]
    assert rounded.dtype == param_dtype
    seen = rounded.astype(jnp.bfloat16)
    step = np.float32(np.abs(seen.astype(jnp.float32)).max()) / (2 ** (bits - 1) - 1)
    first, second = (
        np.rint(np.asarray(w.astype(jnp.float32)) / step)
        for w in (rounded, snap_weight(seen, config, ()))
    )
    np.testing.assert_array_equal(first, second)


@pytest.fixture
def wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("wide")
def test_float64_stays() -> None:
    params, x = {"w": array(12, 5).astype(jnp.float64)}, correlated(9, 12).astype(jnp.float64)
    rounded = LOOK(lambda p, x: x @ p["w"], params, [x], FOUR)
    assert rounded["w"].dtype == jnp.float64
    np.testing.assert_allclose(rounded["w"], snap_weight(rounded["w"], FOUR, ()), rtol=1e-12)


def test_the_optimizer_is_the_users() -> None:
    fn, params, x, _ = layer("dense")
    for optimizer in (optax.sgd(0.1), optax.adam(0.03)):
        rounded = LOOK(fn, params, [x], FOUR, optimizer=optimizer)
        on_grid(rounded["w"][None, None], FOUR)


def broken(where: str) -> tuple[Any, jax.Array]:
    params, x = {"w": array(12, 5)}, correlated(16, 12)
    if where == "weight":
        return {"w": params["w"].at[0, 0].set(jnp.nan)}, x
    return params, x.at[0, 0].set(jnp.inf) if where == "input" else x


ERRORS: dict[str, Any] = {
    "no bits": ({"weight_bits": None}, {}, "", ConfigError, "weight_bits is None"),
    "percentile": ({"weight_observer": "percentile"}, {}, "", ConfigError, "use the observer"),
    "no steps": ({}, {"steps": 0}, "", ConfigError, "steps can't be 0"),
    "half a step": ({}, {"steps": 0.5}, "", ConfigError, "pass a positive integer"),
    "weight": ({}, {}, "weight", WeightError, "can't round a weight .* infinity: 'w'"),
    "input": ({}, {}, "input", CalibrationError, "NaN or infinite activations: 'w'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    options, keywords, where, error, text = ERRORS[name]
    params, x = broken(where)
    with pytest.raises(error, match=text):
        round_weights(lambda p, x: x @ p["w"], params, [x], QuantConfig(**options), **keywords)


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batch_is_an_error(batches: Any) -> None:
    fn, params, _, _ = layer("dense")
    with pytest.raises(CalibrationError, match="rounding needs at least one batch"):
        round_weights(fn, params, batches, FOUR)
