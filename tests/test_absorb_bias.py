"""Absorption of high biases: the function stays to the last digits, or the channel does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxcle as fc
from by_hand import changed, widened
from flaxcle.errors import CalibrationError
from flaxcle.paths import map_named, strip_collection
from zoo import build

RNG = np.random.default_rng(0)
NETWORKS = (
    *("mlp", "vgg", "unet", "densenet", "shufflenetv2", "transposed_depthwise_legal"),
    *("cross_attention", "leaky_prelu", "prelu_channelwise", "conv3d", "grouped", "einsum"),
    *("mobilenetv2_folded", "squeeze_excite", "mlp_nnx", "equinox_cnn", "edge_pad_legal"),
    *("feature_pyramid", "remat_stack", "siamese", "scan_stack", "cond_branches", "gpt2"),
)
ABSORBS = ("mlp", "vgg", "shufflenetv2", "mobilenetv2_folded", "conv3d", "grouped")
relu = jax.nn.relu


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def array(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def per_row(x: jax.Array, rank: int) -> jax.Array:
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


def dense(p: Any, x: jax.Array) -> jax.Array:
    y = x @ p["w"]
    return y + per_row(p["b"], y.ndim)


def conv(p: Any, x: jax.Array, padding: str = "VALID", stride: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, p["w"], (stride, stride), padding, dimension_numbers=numbers
    )
    return y + per_row(p["b"], 4)


def layer(*shape: int, bias: float = 0.0) -> dict[str, np.ndarray]:
    return {"w": array(*shape) / np.sqrt(np.prod(shape[:-1])), "b": bias + array(shape[-1])}


def as_jax(tree: Any) -> Any:
    return jax.tree.map(jnp.asarray, tree)


def spec_of(fn: Any, params: Any, *inputs: Any) -> fc.Spec:
    return fc.find_spec(fn, params, *inputs)


def assert_same(fn: Any, before: Any, after: Any, *inputs: Any) -> None:
    run = jax.jit(fn)
    pairs = zip(*(jax.tree.leaves(run(p, *inputs)) for p in (before, after)), strict=True)
    for one, two in pairs:
        atol = 1e-9 * np.abs(one).max() if jnp.issubdtype(one.dtype, jnp.floating) else 0
        np.testing.assert_allclose(two, one, rtol=1e-9, atol=atol)


def lifted(path: str, leaf: Any) -> Any:
    """Biases high enough for channels that are never cut, but not those of norms."""
    name = strip_collection(path).rsplit("/", 1)
    is_norm = "Norm" in name[0] or not jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf + 3.0 if name[-1] in ("b", "bias") and not is_norm else leaf


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_only_biases_differ(name: str) -> None:
    network = build(name)
    params = map_named(lifted, widened(network.params))
    inputs = widened(network.inputs)
    spec = spec_of(network.fn, params, *inputs)
    new = fc.absorb_bias(network.fn, params, spec, [inputs])
    assert_same(network.fn, params, new, *inputs)
    moved = {path.rsplit("/", 1)[-1] for path in changed(params, new)}
    assert moved <= {"b", "bias"}
    assert bool(moved) >= (name in ABSORBS)
    again = fc.absorbable(network.fn, new, spec, [inputs])
    left = [row["largest"] for row in again if row["verdict"] == "absorbed"]
    assert max(left, default=0.0) < 1e-9


def test_channels_start_at_zero_and_consumers_take_what_is_missing() -> None:
    fn = lambda p, x: dense(p["two"], relu(dense(p["one"], x)))  # noqa: E731
    params = as_jax({"one": layer(3, 4, bias=9.0), "two": layer(4, 2)})
    params["one"]["b"] = params["one"]["b"].at[0].set(-1.0)
    x = jnp.asarray(array(50, 3))
    low = jnp.maximum(dense(params["one"], x).min(0), 0)
    new = fc.absorb_bias(fn, params, spec_of(fn, params, x), [x[:20], (x[20:],)])
    assert changed(params, new) == {"one/b", "two/b"}
    np.testing.assert_allclose(new["one"]["b"], params["one"]["b"] - low, rtol=1e-12)
    np.testing.assert_allclose(
        new["two"]["b"], params["two"]["b"] + low @ params["two"]["w"], rtol=1e-12
    )
    assert low[0] == 0
    assert low[1:].min() > 1


Chain = Callable[[Any, jax.Array], Any]
PARAMS = {
    "one": layer(3, 3, 3, 4, bias=9.0), "two": layer(3, 3, 4, 5), "three": layer(5, 2),
    "wide": layer(1, 1, 4, 4), "slope": 0.25 + 0 * array(4), "gate": layer(4, 4),
    "gain": 1.0 + np.abs(array(5)), "shift": array(5), "other": layer(3, 3, 3, 2, bias=9.0),
    "six": layer(3, 3, 6, 5), "eight": layer(8 * 8 * 4, 3),
}  # fmt: skip


def pooled(x: jax.Array, op: Any, start: float, padding: str = "VALID") -> jax.Array:
    return jax.lax.reduce_window(x, start, op, (1, 2, 2, 1), (1, 2, 2, 1), padding)


def behind(p: Any, y: jax.Array) -> jax.Array:
    return relu(conv(p["two"], y)).mean((1, 2))


def leaky(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 0.1 * x)


def mean_of_squares(x: jax.Array) -> jax.Array:
    return (x * x).mean((1, 2))


# What lies between the convolution `one`, whose channels are high, and the layers behind it.
ABSORBED: dict[str, Chain] = {
    "relu": lambda p, y: behind(p, relu(y)),
    "nothing": behind,
    "leaky relu": lambda p, y: behind(p, leaky(y)),
    "leaky relu, other way round": lambda p, y: behind(p, jnp.where(y <= 0, 0.1 * y, y)),
    "leaky relu of jax": lambda p, y: behind(p, jax.nn.leaky_relu(y)),
    "prelu": lambda p, y: behind(p, jnp.where(y >= 0, y, y * per_row(p["slope"], 4))),
    "where": lambda p, y: behind(p, jnp.where(y > 0, y, 0.0)),
    "a bound that nothing reaches": lambda p, y: behind(p, jnp.clip(y, 0, 99.0)),
    "relu of at most 99": lambda p, y: behind(p, jnp.minimum(relu(y), 99.0)),
    "max pool": lambda p, y: behind(p, pooled(relu(y), jax.lax.max, -jnp.inf)),
    "padded max pool": lambda p, y: behind(p, pooled(relu(y), jax.lax.max, -jnp.inf, "SAME")),
    "mean pool": lambda p, y: behind(p, pooled(relu(y), jax.lax.add, 0.0) / 4.0),
    "mean": lambda p, y: relu(dense(p["gate"], relu(y).mean((1, 2)))),
    "flatten": lambda p, y: dense(p["eight"], relu(y).reshape(y.shape[0], -1)),
    "transpose": lambda p, y: dense(p["gate"], relu(y).transpose(0, 2, 1, 3)),
    "1x1 with same padding": lambda p, y: conv(p["wide"], relu(y), "SAME"),
    "stride": lambda p, y: conv(p["two"], relu(y), "VALID", 2),
    "two consumers": lambda p, y: (conv(p["wide"], relu(y)), behind(p, relu(y))),
    "a gain in front of the bias": lambda p, y: (
        jax.lax.conv_general_dilated(
            relu(y), p["two"]["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ) * per_row(p["gain"], 4) + per_row(p["shift"], 4)
    ),
}  # fmt: skip
REFUSED: dict[str, tuple[str, Chain]] = {
    "zero padding": (
        "zeros are padded", lambda p, y: conv(p["two"], relu(y), "SAME"),
    ),
    "zeros padded before": (
        "zeros are padded",
        lambda p, y: conv(p["two"], jnp.pad(relu(y), ((0, 0), (1, 0), (0, 0), (0, 0)))),
    ),
    "a padded one of two consumers": (
        "zeros are padded", lambda p, y: (conv(p["wide"], relu(y)), conv(p["two"], y, "SAME")),
    ),
    "padded mean pool": (
        "zeros are padded",
        lambda p, y: behind(p, pooled(relu(y[:, 1:]), jax.lax.add, 0.0, "SAME") / 4.0),
    ),
    "transposed convolution": (
        "zeros are padded",
        lambda p, y: jax.lax.conv_transpose(relu(y), p["two"]["w"], (2, 2), "VALID")
        + per_row(p["shift"], 4),
    ),
    "no bias": (
        "no bias takes it in front of max",
        lambda p, y: relu(jnp.einsum("bhwc,cd->bhwd", relu(y), p["gate"]["w"])),
    ),
    "no bias before an output": (
        "output", lambda p, y: jnp.einsum("bhwc,cd->bhwd", relu(y), p["gate"]["w"]),
    ),
    "an output": ("output", lambda p, y: (behind(p, relu(y)), relu(y))),
    "a residual sum": ("in add", lambda p, y: behind(p, relu(y) + conv(p["wide"], relu(y)))),
    "a gate": ("logistic does not", lambda p, y: behind(p, relu(y) * jax.nn.sigmoid(y))),
    "a square": ("in mul", lambda p, y: dense(p["gate"], mean_of_squares(relu(y)))),
    "relu6": ("a clip cuts it", lambda p, y: behind(p, jax.nn.relu6(y))),
    "a clip behind a view": (
        "where its channels lie elsewhere",
        lambda p, y: dense(p["gate"], jnp.minimum(relu(y).reshape(-1, 4), 99.0)),
    ),
    "negated": ("no bias takes it in front of max", lambda p, y: behind(p, relu(-y))),
    "gelu": ("in front of erfc", lambda p, y: behind(p, jax.nn.gelu(y, approximate=False))),
    "maximum over channels": (
        "a maximum over channels compares it",
        lambda p, y: dense({"w": p["gain"][:1, None], "b": p["shift"]}, y.max(-1, keepdims=True)),
    ),
    "rounding": ("round does not", lambda p, y: behind(p, jnp.round(y))),
    "argmax": ("does not let it pass", lambda p, y: (behind(p, y), jnp.argmax(y, -1))),
    "a step at zero": (
        "the outputs would differ", lambda p, y: behind(p, jnp.where(y > 0, y, y + 5.0)),
    ),
    "a bound of another spelling": ("a clip cuts it", lambda p, y: behind(p, jnp.clip(y, 0, 9.0))),
}  # fmt: skip


def case(chain: Chain) -> tuple[Any, Any, jax.Array]:
    fn = lambda p, x: chain(p, conv(p["one"], x))  # noqa: E731
    x = np.random.default_rng(4).normal(size=(3, 10, 10, 3))  # whichever tests ran before
    return fn, as_jax(PARAMS), jnp.asarray(x)


def one_only(params: Any) -> fc.Spec:
    return fc.Spec((fc.Group("one", (4,), (fc.Site("one/w", (-1,)), fc.Site("one/b", (-1,)))),))


@pytest.mark.parametrize("name", ABSORBED)
def test_absorbs_through(name: str) -> None:
    fn, params, x = case(ABSORBED[name])
    new = fc.absorb_bias(fn, params, one_only(params), [x])
    assert_same(fn, params, new, x)
    low = conv(params["one"], x).min((0, 1, 2))
    assert low.min() > 1
    np.testing.assert_allclose(new["one"]["b"], params["one"]["b"] - low, rtol=1e-12)
    (row,) = fc.absorbable(fn, params, one_only(params), [x])
    np.testing.assert_allclose(row.pop("largest"), low.max(), rtol=1e-12)
    assert row == {"bias": "one/b", "channels": 4, "verdict": "absorbed"}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    reason, chain = REFUSED[name]
    fn, params, x = case(chain)
    assert changed(params, fc.absorb_bias(fn, params, one_only(params), [x])) == set()
    verdicts = fc.absorbable(fn, params, one_only(params), [x]).column("verdict")
    assert any(reason in verdict for verdict in verdicts)
    assert "absorbed" not in verdicts


def test_trap_10_zero_padding_is_right_inside_and_wrong_at_the_border() -> None:
    fn, params, _ = case(REFUSED["zero padding"][1])
    single = np.zeros((3, 3, 3, 4))
    single[1, 1, 0] = 1.0  # uniform results: none lies three deviations below the mean
    params["one"]["w"] = jnp.asarray(single)
    x = jnp.asarray(RNG.uniform(-1, 1, (3, 10, 10, 3)))
    new = fc.absorb_bias(fn, params, one_only(params), [x], approximate=True)
    off = np.abs(fn(new, x) - fn(params, x))
    assert off[:, 1:-1, 1:-1].max() < 1e-9
    assert off[:, 0].max() > 1
    verdicts = fc.absorbable(fn, params, one_only(params), [x], approximate=True)
    assert verdicts.column("verdict") == ["absorbed"]


@pytest.mark.parametrize("name", ["no bias", "an output", "a residual sum", "relu6"])
def test_trap_11_what_is_never_right_is_refused_even_approximately(name: str) -> None:
    fn, params, x = case(REFUSED[name][1])
    new = fc.absorb_bias(fn, params, one_only(params), [x], approximate=True)
    assert changed(params, new) == set()


def test_trap_11_a_norm_of_either_sign_gives_what_its_results_exceed() -> None:
    """Live statistics: beta - 3 gamma with a negative gamma would be far too high."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        y = (x @ p["w"] - p["mean"][None]) * jax.lax.rsqrt(p["var"] + 1e-3)[None]
        return dense(p["next"], relu(y * p["scale"][None] + p["bias"][None]))

    params = as_jax(
        {"w": array(3, 4), "mean": array(4), "var": array(4) ** 2, "scale": array(4),
         "bias": 9 + array(4), "next": layer(4, 2)}
    )  # fmt: skip
    params["scale"] = params["scale"].at[0].set(-2.0)
    x = jnp.asarray(array(40, 3))
    new = fc.absorb_bias(fn, params, spec_of(fn, params, x), [x])
    assert {"bias", "next/b"} == changed(params, new)
    assert_same(fn, params, new, x)


def test_approximate_goes_down_to_three_deviations() -> None:
    fn = lambda p, x: dense(p["two"], relu(dense(p["one"], x)))  # noqa: E731
    params = as_jax({"one": {"w": np.eye(1), "b": np.full(1, 10.0)}, "two": layer(1, 2)})
    x = jnp.asarray(np.r_[-9.0, np.tile([-1.0, 1.0], 500)][:, None])
    pre = np.asarray(dense(params["one"], x))
    spec = spec_of(fn, params, x)
    exact, loose = (
        fc.absorb_bias(fn, params, spec, [x[:300], x[300:]], approximate=a)["one"]["b"]
        for a in (False, True)
    )
    np.testing.assert_allclose(exact, 10 - pre.min(), rtol=1e-12)
    np.testing.assert_allclose(loose, 10 - (pre.mean() - 3 * pre.std()), rtol=1e-12)


def test_concatenated_channels_are_absorbed_one_by_one() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        both = jnp.concatenate([relu(conv(p["one"], x)), relu(conv(p["other"], x))], -1)
        return behind({"two": p["six"]}, both)

    params, x = as_jax(PARAMS), jnp.asarray(array(3, 10, 10, 3))
    params["other"]["b"] = params["other"]["b"].at[1].set(-50.0)
    spec = spec_of(fn, params, x)
    new = fc.absorb_bias(fn, params, spec, [x])
    assert {"one/b", "other/b", "six/b"} <= changed(params, new)
    assert_same(fn, params, new, x)
    rows = [(r["bias"], r["channels"], r["verdict"]) for r in fc.absorbable(fn, params, spec, [x])]
    assert ("one/b", 4, "absorbed") in rows
    assert ("other/b", 1, "absorbed") in rows
    assert ("other/b", 1, "it is not always above zero") in rows


def test_one_step_after_the_other_in_a_chain() -> None:
    """A bias that takes up what comes from in front also gives away its own."""

    def fn(p: Any, x: jax.Array) -> jax.Array:
        for name in ("a", "b", "c"):
            x = relu(dense(p[name], x))
        return dense(p["d"], x)

    params = as_jax({name: layer(5, 5, bias=9.0) for name in "abcd"})
    x = jnp.asarray(array(30, 5))
    new = fc.absorb_bias(fn, params, spec_of(fn, params, x), [x])
    assert changed(params, new) == {"a/b", "b/b", "c/b", "d/b"}
    assert_same(fn, params, new, x)
    y = x
    for name in ("a", "b", "c"):
        y = dense(new[name], y)
        np.testing.assert_allclose(y.min(0)[y.min(0) > -1e-9], 0, atol=1e-9)
        y = relu(y)


def test_only_biases_of_the_spec_give() -> None:
    fn, params, x = case(ABSORBED["relu"])
    for spec in (fc.Spec(), fc.Spec((fc.Group("two", (5,), (fc.Site("two/b", (0,)),)),))):
        assert "one/b" not in changed(params, fc.absorb_bias(fn, params, spec, [x]))


def test_clips_with_leaves_count_as_clips() -> None:
    fn, params, x = case(lambda p, y: behind(p, jax.nn.relu6(y - 6.0)))
    base = {"params": params}
    exposed, bounded = fc.expose_clips(lambda v, x: fn(v["params"], x), base, x)
    bounded["params"]["one"]["b"] = bounded["params"]["one"]["b"] * 0 + 9.0
    spec = fc.find_spec(exposed, bounded, x)
    new = fc.absorb_bias(exposed, bounded, spec, [x])
    assert_same(exposed, bounded, new, x)


def test_dtype_and_generator() -> None:
    fn, params, x = case(ABSORBED["relu"])
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    batches = (part.astype(jnp.float32) for part in (x[:1], x[1:]))
    new = fc.absorb_bias(fn, narrow, one_only(params), batches)
    assert changed(narrow, new) == {"one/b", "two/b"}


@pytest.mark.parametrize("batches", [[], iter(())])
def test_no_batch_is_an_error(batches: Any) -> None:
    fn, params, _ = case(ABSORBED["relu"])
    with pytest.raises(CalibrationError, match="absorption needs at least one batch"):
        fc.absorb_bias(fn, params, one_only(params), batches)
