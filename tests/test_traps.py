"""The known traps of equalization and quantization, one named law each: `test_trap_<number>_...`.

 1  zero range                  16  every consumer             26  mixture of experts
 2  tiny range                  17  outputs are consumers      27  per-channel weights
 3  constant channel            18  shared and tied weights    28  max-abs, not max-min
 4  bias blow-up                19  closure of residual sums   29  half precision
 5  activation growth           20  products are bilinear      30  groups with many members
 6  ReLU6 bounds                21  layouts                    31  overlapping chains
 7  what is not homogeneous     22  grouped convolution        32  the triple
 8  LeakyReLU and PReLU         23  flatten, both orders       33  true integers
 9  pools, resize, padding      24  gain of 1 + w              34  edge cases of grids
14  live BatchNorm              25  grouped queries            35  biases stay in float
15  folded BatchNorm                                           36  order of bias correction

Traps 10 and 11 concern bias absorption and stand in test_absorb_bias.py, traps 12 and 13 concern
analytic correction and stand in test_bias_analytic.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import flaxcle as fc
from by_hand import assert_preserved
from flaxcle import Group, QuantConfig, Site, Spec
from flaxcle.discover import check_spec
from flaxcle.errors import SpecError
from flaxcle.paths import named_leaves
from zoo.base import draw, image


def hidden(p: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ p["a"] + p["b"][None])


def pair_fn(p: Any, x: jax.Array) -> jax.Array:
    return hidden(p, x) @ p["c"]


def pair(a: Any, c: Any, b: Any = None, dtype: Any = jnp.float32) -> tuple[Any, Spec]:
    """Params of `pair_fn` and their declared spec."""
    a, c = jnp.asarray(a, dtype), jnp.asarray(c, dtype)
    b = jnp.zeros(a.shape[1], dtype) if b is None else jnp.asarray(b, dtype)
    sites = (Site("a", (1,)), Site("b", (0,)), Site("c", (0,), -1))
    return {"a": a, "b": b, "c": c}, Spec((Group("a -> c", (a.shape[1],), sites),))


def random_params(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return draw("traps", {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})


def check_found(fn: Callable[..., Any], params: Any, *inputs: Any, scales: int) -> Spec:
    """Finds the spec, counts its scales, and moves them all."""
    spec = fc.find_spec(fn, params, *inputs)
    assert spec.scales == scales, str(spec)
    assert_preserved(fn, params, spec, *inputs)
    return spec


def moved(spec: Spec) -> set[str]:
    return {site.path for group in spec.groups for site in group.sites}


def test_trap_01_zero_range_keeps_scale_one():
    """A channel that is zero on one side, or on both, has nothing to balance."""
    params, spec = pair([[0.0, 0.0, 8.0, 4.0]], [[0.0], [3.0], [0.0], [1.0]])
    scales = fc.solve(params, spec)
    assert scales["a -> c"].tolist() == [1.0, 1.0, 1.0, 0.5]
    assert scales.kept["a -> c"].tolist() == [True, True, True, False]
    after = fc.apply_scales(params, scales, spec)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in after.values())


def test_trap_02_tiny_range_is_not_blown_up():
    """A scale of 1e8 amplifies rounding: tiny channels keep 1, the rest stay within `max_scale`."""
    params, spec = pair([[1e-20, 1e-5, 1.0]], [[1.0], [10.0], [1.0]])
    assert fc.solve(params, spec)["a -> c"].tolist() == pytest.approx([1.0, 1e3, 1.0])
    assert fc.solve(params, spec, max_scale=8.0)["a -> c"].tolist() == [1.0, 8.0, 1.0]


def test_trap_03_constant_channel_keeps_its_bias():
    """A channel without weights emits its bias: a scale would only make the bias larger."""
    params, spec = pair([[1e-20, 4.0]], [[1.0], [1.0]], [0.08, 0.5])
    after = fc.equalize(params, spec)
    assert after["b"][0] == params["b"][0]
    assert after["b"][1] == pytest.approx(0.25)


@pytest.mark.parametrize("weight", [1e-3, 1e-6, 1e-20])
def test_trap_04_biases_still_fit_int32_after_equalization(weight):
    """A bias counts steps of (input step * weight step); its count must fit 32 bits."""
    params, spec = pair([[weight, 1.0]], [[1.0], [1.0]], [5.0, 5.0])
    after = fc.equalize(params, spec)
    step = (1 / 255) * float(jnp.abs(after["a"]).max()) / 127
    assert float(jnp.abs(after["b"]).max()) / step < 2**31
    assert float(jnp.abs(after["b"]).max()) <= 5.0 * 2**10


def test_trap_05_activation_ranges_are_read_anew_after_equalization():
    """Scales move activations: ranges from before equalization clip them."""
    params, spec = pair([[0.01, 1.0]], [[1.0], [0.01]])
    x, config = jnp.linspace(0.1, 1.0, 16).reshape(16, 1), QuantConfig()
    after = fc.equalize(params, spec)
    stale, fresh = (fc.calibrate(pair_fn, p, [x], config) for p in (params, after))
    top = jnp.max(hidden(after, x))
    assert any(float(high) == pytest.approx(float(top)) for high in fresh.high.values())
    clean = pair_fn(params, x)
    noise = [fc.sqnr(clean, fc.fake_quant(pair_fn, config, c)(after, x)) for c in (stale, fresh)]
    assert noise[1] > noise[0]


def test_trap_06_relu6_is_refused_or_kept_exactly():
    """`min(s x, 6)` is not `s min(x, 6)`: the bound moves along, or nothing does."""

    def fn(p, x):
        return jnp.minimum(hidden(p, 9 * x), 6.0) @ p["c"]

    params, x = random_params(a=(3, 4), b=(4,), c=(4, 2)), image(8, 3)
    assert fc.find_spec(fn, params, x).scales == 0
    exposed, params = fc.expose_clips(fn, params, x)
    spec = check_found(exposed, params, x, scales=4)
    assert "clips/a/max" in moved(spec)


SMOOTH = {
    "gelu": jax.nn.gelu,
    "hard_swish": lambda h: h * jnp.clip(h + 3, 0, 6) / 6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softmax": jax.nn.softmax,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


@pytest.mark.parametrize("act", SMOOTH.values(), ids=SMOOTH)
def test_trap_07_inhomogeneous_functions_block_scales(act):
    """Only what satisfies `f(s x) = s f(x)` lets a scale pass."""

    def fn(p, x):
        return act(x @ p["a"]) @ p["c"]

    params, spec = pair(np.ones((2, 3)), np.ones((3, 2)))
    params.pop("b")
    spec = Spec((Group("a -> c", (3,), (Site("a", (1,)), Site("c", (0,), -1))),))
    assert fc.find_spec(fn, params, jnp.ones((1, 2))).scales == 0
    with pytest.raises(SpecError, match="the spec would change the function"):
        check_spec(fn, params, spec, jnp.ones((1, 2)))


@pytest.mark.parametrize("slope", [0.01, -0.5, (0.2, -0.3, 1.5)])
def test_trap_08_leaky_slopes_of_both_signs_let_positive_scales_pass(slope):
    """LeakyReLU and PReLU are homogeneous for positive scales, whatever the slopes' signs."""

    def fn(p, x):
        h = x @ p["a"] + p["b"][None]
        return jnp.where(h >= 0, h, h * jnp.atleast_1d(jnp.asarray(slope, h.dtype))[None]) @ p["c"]

    params, x = random_params(a=(4, 3), b=(3,), c=(3, 2)), image(8, 4)
    check_found(fn, params, x, scales=3)


def max_pool(h: jax.Array) -> jax.Array:
    return nn.max_pool(h, (2, 2), (2, 2), padding="SAME")


def mean_pool(h: jax.Array) -> jax.Array:
    return nn.pool(h, 0.0, lax.add, (2, 2), (2, 2), "VALID") / 4


def nearest(h: jax.Array) -> jax.Array:
    return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)


def padded(value: float) -> Callable[[jax.Array], jax.Array]:
    return lambda h: jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=value)


PLACES = {
    "max_pool": (max_pool, 4),
    "mean_pool": (mean_pool, 4),
    "nearest_resize": (nearest, 4),
    "zero_pad": (padded(0.0), 4),
    "finite_pad": (padded(-1.0), 0),
    "max_pool_after_finite_pad": (lambda h: max_pool(padded(-9.0)(h)), 0),
}


@pytest.mark.parametrize(("place", "scales"), PLACES.values(), ids=PLACES)
def test_trap_09_pools_and_zero_padding_pass_other_padding_does_not(place, scales):
    """A padded value other than zero is an input that no scale reaches."""

    def fn(p, x):
        return place(jax.nn.relu(x @ p["a"])).mean(axis=(1, 2)) @ p["c"]

    params, x = random_params(a=(3, 4), c=(4, 2)), image(1, 4, 4, 3)
    spec = fc.find_spec(fn, params, x)
    assert spec.scales == scales
    if scales:
        assert_preserved(fn, params, spec, x)


def batch_norm(h: jax.Array, p: Any) -> jax.Array:
    gain = lax.rsqrt(p["var"] + 1e-3) * p.get("scale", 1.0)
    return (h - p["mean"][None]) * gain[None] + p.get("bias", jnp.zeros_like(gain))[None]


def test_trap_14_running_statistics_of_a_live_norm_follow_its_input():
    """A mean moves exactly as the layer before it; with an eps beside it a variance never moves."""

    def fn(p, x):
        return jax.nn.relu(batch_norm(x @ p["a"], p["norm"])) @ p["c"]

    params = random_params(a=(3, 4), c=(4, 2))
    params["norm"] = random_params(scale=(4,), bias=(4,), mean=(4,), var=(4,))
    x = image(6, 3)
    spec = fc.find_spec(fn, params, x)
    assert moved(spec) == {"a", "norm/mean", "norm/scale", "norm/bias", "c"}
    for group in spec.groups:
        powers = {site.path: site.power for site in group.sites}
        assert powers.get("norm/mean") == powers.get("a")
    assert_preserved(fn, params, spec, x, exact=False)
    declared = Spec.from_pairs([("norm", "c")], params)
    assert moved(declared) == {"norm/scale", "norm/bias", "c"}
    assert_preserved(fn, params, declared, x)


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_trap_15_folding_knows_negative_gains_and_missing_parameters(use_scale, use_bias):
    """The fold takes gain, shift and eps from what the function computes, not from a recipe."""
    options = {"use_scale": use_scale, "use_bias": use_bias, "epsilon": 0.1}

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=True, **options)(nn.Dense(4)(x))

    net, x = Net(), image(6, 3)
    params = draw("traps", jax.eval_shape(net.init, jax.random.key(0), x))
    if use_scale:
        norm = params["params"]["BatchNorm_0"]
        norm["scale"] = jnp.asarray([-1.5, 0.5, -0.1, 2.0], jnp.float32)
    folded = fc.fold_batch_norm(net.apply, params, x)
    assert not np.array_equal(
        named_leaves(folded)["params/Dense_0/kernel"], named_leaves(params)["params/Dense_0/kernel"]
    )
    assert fc.verify(net.apply, params, folded, x)


def test_trap_16_every_consumer_is_compensated():
    """A spec that forgets one consumer changes the function, and is refused by name."""

    def fn(p, x):
        h = hidden(p, x)
        return h @ p["c"], jax.nn.sigmoid(h @ p["d"])

    params, x = random_params(a=(3, 4), b=(4,), c=(4, 2), d=(4, 1)), image(5, 3)
    spec = check_found(fn, params, x, scales=4)
    assert moved(spec) == {"a", "b", "c", "d"}
    with pytest.raises(SpecError, match="'d' also consumes the scaled channels of 'a -> c'"):
        check_spec(fn, params, pair(params["a"], params["c"])[1], x)


def test_trap_17_outputs_are_consumers():
    """A tensor that leaves the function can't be scaled, wherever else it goes."""

    def fn(p, x):
        h = hidden(p, x)
        return {"logits": h @ p["c"], "features": h}

    params, x = random_params(a=(3, 4), b=(4,), c=(4, 2)), image(5, 3)
    assert fc.find_spec(fn, params, x).scales == 0
    with pytest.raises(SpecError, match="the spec would change the function"):
        check_spec(fn, params, pair(params["a"], params["c"])[1], x)


def test_trap_18_shared_weights_move_with_all_their_uses_or_not_at_all():
    """A layer that reads its own output has one scale on both sides, and one for its size."""

    def twice(p, x):
        h = jax.nn.relu(x @ p["a"])
        return jax.nn.relu(jax.nn.relu(h @ p["w"]) @ p["w"]) @ p["c"]

    def tied(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["a"].T

    params, x = random_params(a=(3, 4), w=(4, 4), c=(4, 2)), image(5, 3)
    spec = check_found(twice, params, x, scales=4 + 1)
    (group,) = [group for group in spec.groups if group.shape == (4,)]
    assert sorted(site.path for site in group.sites) == ["a", "c", "w", "w"]
    assert fc.find_spec(tied, {"a": params["a"]}, x).scales == 0


def test_trap_19_a_residual_sum_is_one_group_and_the_input_pins_it():
    """All that meets in a sum shares a scale; an identity skip from the input leaves none."""

    def block(p, h):
        return h + jax.nn.relu(h @ p["u"]) @ p["v"]

    def fn(p, x):
        return jax.nn.relu(block(p, x @ p["a"])) @ p["c"]

    def skip(p, x):
        return jax.nn.relu(block(p, x)) @ p["c"]

    params, x = random_params(a=(3, 4), u=(4, 5), v=(5, 4), c=(4, 2)), image(5, 3)
    spec = check_found(fn, params, x, scales=4 + 5)
    (sums,) = [g for g in spec.groups if g.shape == (4,)]
    assert {(site.path, int(site.power)) for site in sums.sites} == {
        ("a", 1),
        ("u", -1),
        ("v", 1),
        ("c", -1),
    }
    params.pop("a")
    assert moved(check_found(skip, params, image(5, 4), scales=5)) == {"u", "v"}


def test_trap_20_one_factor_of_a_product_moves_and_a_square_moves_twice():
    """`silu(gate) * up`: up moves, gate does not. `h * h` carries the scale squared."""

    def gated(p, x):
        return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]

    def square(p, x):
        h = jax.nn.relu(x @ p["up"])
        return (h * h) @ p["down"]

    params, x = random_params(gate=(3, 4), up=(3, 4), down=(4, 2)), image(5, 3)
    assert moved(check_found(gated, params, x, scales=4)) == {"up", "down"}
    params.pop("gate")
    (group,) = check_found(square, params, x, scales=4).groups
    powers = {site.path: site.power for site in group.sites}
    assert powers["down"] == -2 * powers["up"]


class Block(nn.Module):
    """A layer, ReLU, and a layer that reads its channels."""

    first: Any
    second: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.relu(self.first()(x))
        return self.second()(hidden)


def layer(kind: Any, *args: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: kind(*args, **options)


LAYOUTS: dict[str, tuple[Any, Any, jax.Array, int]] = {
    "depthwise_multiplier": (
        layer(nn.Conv, 3, (1, 1)),
        layer(nn.Conv, 6, (3, 3), feature_group_count=3),
        image(1, 3, 3, 2),
        3,
    ),
    "transposed": (
        layer(nn.ConvTranspose, 3, (2, 2)),
        layer(nn.ConvTranspose, 4, (2, 2), transpose_kernel=True),
        image(1, 3, 3, 2),
        3,
    ),
    "dense_general": (
        layer(nn.DenseGeneral, (2, 3)),
        layer(nn.DenseGeneral, 4, axis=(-2, -1)),
        image(2, 5),
        6,
    ),
    "embed": (layer(nn.Embed, 5, 3), layer(nn.Dense, 4), jnp.arange(5), 3),
}


@pytest.mark.parametrize(("first", "second", "x", "scales"), LAYOUTS.values(), ids=LAYOUTS)
def test_trap_21_the_channel_axis_is_right_in_every_layout(first, second, x, scales):
    """Depthwise multipliers, flipped kernels, several axes, lookups: found by what they compute."""
    net = Block(first, second)
    params = draw("traps", jax.eval_shape(net.init, jax.random.key(0), x))
    check_found(net.apply, params, x, scales=scales)


def test_trap_22_grouped_convolutions_count_input_channels_per_group():
    """A grouped kernel's input axis is as long as one group; its rows serve every group."""
    net = Block(layer(nn.Conv, 4, (1, 1)), layer(nn.Conv, 6, (3, 3), feature_group_count=2))
    x = image(1, 3, 3, 2)
    params = draw("traps", jax.eval_shape(net.init, jax.random.key(0), x))
    assert params["params"]["Conv_1"]["kernel"].shape == (3, 3, 2, 6)
    check_found(net.apply, params, x, scales=4)


FLATTENED = {
    "NHWC": (("NHWC", "HWIO", "NHWC"), [0, 1, 0, 1]),
    "NCHW": (("NCHW", "OIHW", "NCHW"), [0, 0, 1, 1]),
}


@pytest.mark.parametrize(("layout", "wanted"), FLATTENED.values(), ids=FLATTENED)
def test_trap_23_flatten_repeats_channels_in_the_order_of_the_layout(layout, wanted):
    """After a flatten each channel feeds H*W rows, adjacent or strided."""

    def fn(p, x):
        h = lax.conv_general_dilated(x, p["a"], (1, 1), "VALID", dimension_numbers=layout)
        return jax.nn.relu(h).reshape(h.shape[0], -1) @ p["c"]

    last = layout[0] == "NHWC"
    params = random_params(a=(1, 1, 3, 2) if last else (2, 3, 1, 1), c=(4, 2))
    x = image(1, 2, 1, 3) if last else image(1, 3, 2, 1)
    (group,) = check_found(fn, params, x, scales=2).groups
    (site,) = [site for site in group.sites if site.path == "c"]
    assert site.index is not None
    assert np.asarray(site.index).tolist() == wanted


def test_trap_24_a_gain_of_one_plus_w_is_not_scaled_as_if_it_were_w():
    """`(1 + w) s` is not `1 + w s`: the leaf stays where it is."""

    def fn(p, x, offset):
        h = x @ p["a"]
        h = h * lax.rsqrt(jnp.mean(h * h, axis=-1, keepdims=True) + 1e-6)
        return (h * (offset + p["gain"])[None]) @ p["c"]

    params, x = random_params(a=(3, 4), gain=(4,), c=(4, 2)), image(5, 3)
    plain = fc.find_spec(lambda p, x: fn(p, x, 0.0), params, x)
    assert moved(plain) == {"gain", "c"}
    shifted = fc.find_spec(lambda p, x: fn(p, x, 1.0), params, x)
    assert shifted.scales == 0
    group = plain.groups[0]
    with pytest.raises(SpecError, match="the spec would change the function"):
        check_spec(lambda p, x: fn(p, x, 1.0), params, Spec((group,)), x)


def test_trap_25_grouped_queries_share_the_scales_of_their_key_value_head():
    """Values: one scale per key-value channel, repeated over its query heads. Queries likewise."""

    def fn(p, x):
        q, k, v = (jnp.einsum("td,dhe->the", x, p[name]) for name in "qkv")
        k, v = jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1)
        mix = jax.nn.softmax(jnp.einsum("the,she->hts", q, k))
        return jnp.einsum("hts,she,hed->td", mix, v, p["o"])

    params = random_params(q=(3, 4, 2), k=(3, 2, 2), v=(3, 2, 2), o=(4, 2, 3))
    spec = fc.find_spec(fn, params, image(5, 3))
    assert spec.scales == 2 * 2 + 2 * 2
    assert_preserved(fn, params, spec, image(5, 3), exact=False)
    (values,) = [g for g in spec.groups if any(s.path == "v" for s in g.sites)]
    assert {site.path for site in values.sites} == {"v", "o"}


def test_trap_26_router_and_shared_expert_read_the_same_norm():
    """In a mixture of experts the norm's gain has more readers than the experts."""

    def fn(p, x):
        h = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True)) * p["gain"][None]
        weights = jax.nn.softmax(h @ p["router"])
        experts = jax.nn.silu(jnp.einsum("td,edf->tef", h, p["experts"]))
        return jnp.einsum("te,tef->tf", weights, experts) + jax.nn.silu(h @ p["shared"])

    params = random_params(gain=(4,), router=(4, 2), experts=(2, 4, 3), shared=(4, 3))
    spec = check_found(fn, params, image(5, 4), scales=4)
    assert moved(spec) == {"gain", "router", "experts", "shared"}


def test_trap_27_per_channel_weights_leave_all_scales_at_one():
    """With a step for each output channel there is no tensor to stand out of."""
    params, spec = pair([[8.0, 1.0]], [[2.0], [4.0]])
    assert fc.solve(params, spec, granularity="per_channel")["a -> c"].tolist() == [1.0, 1.0]
    assert fc.equalize(params, spec, granularity="per_channel") is params


def test_trap_28_ranges_are_magnitudes_not_differences():
    """One weight a channel, or weights that are all alike, have max - min = 0."""
    params, spec = pair([[8.0, -1.0], [8.0, -1.0]], [[2.0], [4.0]])
    assert fc.solve(params, spec)["a -> c"].tolist() == pytest.approx([0.5, 2.0], rel=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_trap_29_half_precision_neither_overflows_nor_loses_a_bit(dtype):
    """The product of two ranges overflows float16; logarithms in float32 do not."""
    params, spec = pair([[512.0, 2.0**-12]], [[2048.0], [16.0]], dtype=dtype)
    after = fc.equalize(params, spec, max_scale=2.0**20)
    np.testing.assert_allclose(np.asarray(after["a"], np.float64), [[1024.0, 2.0**-4]], rtol=1e-2)
    params, spec = pair([[3.0, 0.3]], [[0.7], [9.0]], [0.1, 0.2], dtype=dtype)
    exact = fc.equalize(params, spec, power_of_two=True)
    assert not np.array_equal(exact["a"], params["a"])
    assert {leaf.dtype for leaf in exact.values()} == {jnp.dtype(dtype)}
    assert fc.verify(pair_fn, params, exact, jnp.ones((2, 1), dtype)).identical


def test_trap_30_all_members_of_a_group_count():
    """Each side counts with the mean of its members' logarithms, not with its largest alone."""
    sites = (Site("a", (1,)), Site("c", (0,), -1), Site("d", (0,), -1))
    params = {"a": jnp.ones((3, 2)), "c": jnp.full((2, 3), 4.0), "d": jnp.full((2, 5), 16.0)}
    scales = fc.solve(params, Spec((Group("g", (2,), sites),)))
    np.testing.assert_allclose(scales.log2["g"], (2 + 4) / 2 / 2, rtol=1e-6)


CHAIN = {f"l{i}": {"kernel": (4, 4), "bias": (4,)} for i in range(4)}


def chain_params() -> Any:
    abstract = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        CHAIN,
        is_leaf=lambda node: isinstance(node, tuple),
    )
    return draw("traps", abstract)


def test_trap_31_overlapping_chains_don_t_depend_on_their_order():
    """A middle layer is scaled on both sides; the fixed point knows no order of discovery."""
    params = chain_params()
    pairs = [("l0", "l1"), ("l1", "l2"), ("l2", "l3")]
    one, two = (
        fc.equalize(params, Spec.from_pairs(order, params), tol=1e-6)
        for order in (pairs, pairs[::-1])
    )
    for path, leaf in named_leaves(one).items():
        np.testing.assert_allclose(named_leaves(two)[path], leaf, rtol=1e-4, err_msg=path)


def test_trap_32_the_triple_is_the_fixed_point_of_its_pairs():
    """Convolution, depthwise, convolution: all three ranges become the cube root of the product."""
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
        "d": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "c": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32),
    }
    first = Group("a -> d", (4,), (Site("a", (1,)), Site("d", (1,), -1)))
    second = Group("d -> c", (4,), (Site("d", (1,)), Site("c", (0,), -1)))
    ranges = [np.abs(params[name]).max(axis) for name, axis in (("a", 0), ("d", 0), ("c", 1))]
    after = fc.equalize(params, Spec((first, second)), tol=1e-6, max_sweeps=1000)
    for name, axis in (("a", 0), ("d", 0), ("c", 1)):
        reached = np.abs(after[name]).max(axis)
        np.testing.assert_allclose(reached, np.cbrt(np.prod(ranges, axis=0)), rtol=1e-4)


def test_trap_33_the_simulation_equals_true_integers():
    """With steps that are powers of two float32 is exact: every bit must be an integer's."""
    rng = np.random.default_rng(0)
    w, x = rng.integers(-127, 128, (8, 3)), rng.integers(0, 256, (4, 8))
    w[0, 0], x[0, :2] = 127, (0, 255)
    params = {"w": jnp.asarray(w * 2.0**-7, jnp.float32)}
    inputs, config = jnp.asarray(x * 2.0**-8, jnp.float32), QuantConfig()

    def fn(p, x):
        return x @ p["w"]

    ranges = fc.calibrate(fn, params, [inputs], config)
    out = fc.fake_quant(fn, config, ranges)(params, inputs)
    total = (x.astype(np.int32) @ w.astype(np.int32)).astype(np.float32) * np.float32(2.0**-15)
    low, high = np.float32(ranges.low["output_0"]), np.float32(ranges.high["output_0"])
    step = (high - low) / np.float32(255)
    zero = np.round(-low / step)
    q = np.clip(np.round(total / step) + zero, 0, 255).astype(np.int32)
    np.testing.assert_array_equal(out, (q - zero.astype(np.int32)).astype(np.float32) * step)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-40])
def test_trap_34_constant_tensors_and_ranges_without_zero(value, symmetric):
    """No empty range, and zero is on every grid: padding and ReLU produce it."""
    config = QuantConfig(act_symmetric=symmetric, weight_symmetric=symmetric)

    def fn(p, x):
        return x @ p["w"]

    params, x = {"w": jnp.full((2, 2), value, jnp.float32)}, jnp.full((3, 2), value, jnp.float32)
    quantized = fc.fake_quant(fn, config, fc.calibrate(fn, params, [x], config))
    np.testing.assert_allclose(quantized(params, x), fn(params, x), rtol=1e-2, atol=1e-30)
    assert np.array_equal(quantized(params, jnp.zeros_like(x)), jnp.zeros((3, 2)))


def test_trap_35_biases_are_not_quantized():
    """Eight bits for a bias undo its correction: biases stay in float."""

    def fn(p, x):
        return x @ p["w"] + p["b"][None]

    params = {"w": jnp.ones((2, 3)), "b": jnp.asarray([1e-4, 1.0, np.pi], jnp.float32)}
    config, x = QuantConfig(weight_bits=2, act_bits=None), jnp.zeros((1, 2))
    out = fc.fake_quant(fn, config, fc.calibrate(fn, params, [x], config))(params, x)
    assert np.array_equal(out[0], params["b"])


def test_trap_36_bias_correction_comes_last_and_changes_biases_only():
    """On the equalized network it lowers the mean error; without quantization it does nothing."""
    drawn = random_params(a=(6, 4), c=(4, 3))
    params, spec = pair(drawn["a"], drawn["c"])

    def fn(p, x):
        return pair_fn(p, x) + p["out"][None]

    params["out"] = jnp.zeros(3)
    x, config = image(64, 6), QuantConfig(weight_bits=3)
    equalized = fc.equalize(params, spec)
    corrected = fc.correct_bias(fn, equalized, [x], config)
    assert all(np.array_equal(corrected[kernel], equalized[kernel]) for kernel in "ac")
    assert not np.array_equal(corrected["b"], equalized["b"])
    ranges = fc.calibrate(fn, equalized, [x], config)
    clean = fn(params, x)
    quantized = fc.fake_quant(fn, config, ranges)
    bias = [float(jnp.abs((quantized(p, x) - clean).mean(0)).max()) for p in (equalized, corrected)]
    assert bias[1] < 0.2 * bias[0]
    idle = fc.correct_bias(fn, equalized, [x], QuantConfig(weight_bits=None, act_bits=None))
    for name, leaf in idle.items():
        np.testing.assert_allclose(leaf, equalized[name], atol=1e-6, err_msg=name)
