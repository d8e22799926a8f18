"""`prune_dead_channels`: what never fires goes on all sides, what emits a constant stays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze

import flaxcle as fc
from by_hand import apply_table, random_log2
from flaxcle.paths import named_leaves, replace_leaves
from flaxcle.spec.table import channels
from zoo import build
from zoo.base import draw, image

BLOCK = "params/InvertedResidual_3"
EXPAND, DEPTHWISE, PROJECT = (f"{BLOCK}/ConvNorm_{i}/Conv_0" for i in range(3))
DEAD = (1, 4)
CONSTANT = 2


@dataclass(frozen=True)
class Planted:
    """MobileNetV2, folded, with dead and constant channels in one block, and the pruned params."""

    fn: Any
    params: Any
    pruned: Any
    x: jax.Array


def edited(params: Any, **edits: Any) -> Any:
    """The params with leaves replaced by what functions make of them."""
    leaves = named_leaves(params)
    return replace_leaves(params, {path: edit(leaves[path]) for path, edit in edits.items()})


@cache
def planted() -> Planted:
    net = build("mobilenetv2")
    (x,) = net.inputs
    folded = fc.fold_batch_norm(net.fn, net.params, x)
    dead, constant = jnp.asarray(DEAD), CONSTANT
    norm = "params/InvertedResidual_3/ConvNorm_0/BatchNorm_0/bias"
    edits = {
        f"{EXPAND}/kernel": lambda w: (
            w.at[..., dead].multiply(1e-20).at[..., constant].multiply(1e-20)
        ),
        norm: lambda b: b.at[dead].set(-0.5).at[constant].set(0.08),
        f"{DEPTHWISE}/kernel": lambda w: w.at[..., dead].multiply(90),
        f"{PROJECT}/kernel": lambda w: w.at[:, :, dead].multiply(1e-20),
    }
    params = edited(folded, **edits)
    return Planted(net.fn, params, fc.prune_dead_channels(net.fn, params, x), x)


def zeroed(before: Any, after: Any) -> set[tuple[str, int]]:
    """(leaf, channel of its last two axes) for everything that became zero."""
    old, new = named_leaves(before), named_leaves(after)
    changed: set[tuple[str, int]] = set()
    for path in old:
        gone = np.asarray(old[path]) != np.asarray(new[path])
        assert not np.asarray(new[path])[gone].any(), path
        axis = -2 if path == f"{PROJECT}/kernel" else -1
        rest = tuple(k for k in range(gone.ndim) if k != axis % gone.ndim)
        changed |= {(path, int(c)) for c in np.flatnonzero(gone.any(rest))}
    return changed


def test_exactly_the_dead_channels_are_zeroed_on_all_sides():
    net = planted()
    kernels = {(p, c) for p, c in zeroed(net.params, net.pruned) if p.endswith("kernel")}
    assert kernels == {(f"{k}/kernel", c) for k in (EXPAND, DEPTHWISE, PROJECT) for c in DEAD}
    run = jax.jit(net.fn)
    np.testing.assert_allclose(run(net.pruned, net.x), run(net.params, net.x), rtol=1e-6)


def test_pruning_twice_changes_nothing():
    net = planted()
    assert not zeroed(net.pruned, fc.prune_dead_channels(net.fn, net.pruned, net.x))


def test_constant_channels_stay_and_keep_scale_one():
    net = planted()
    old, pruned = named_leaves(net.params), named_leaves(net.pruned)
    for kernel in (EXPAND, DEPTHWISE):
        np.testing.assert_array_equal(
            pruned[f"{kernel}/kernel"][..., CONSTANT], old[f"{kernel}/kernel"][..., CONSTANT]
        )
    exposed, params = fc.expose_clips(net.fn, net.params, net.x)
    spec = fc.find_spec(exposed, params, net.x)
    scales = fc.solve(params, spec)
    between = {(f"{EXPAND}/kernel", True), (f"{DEPTHWISE}/kernel", False)}
    (group,) = [g for g in spec.groups if between <= {(s.path, s.power > 0) for s in g.sites}]
    assert scales[group.name][CONSTANT] == 1.0
    assert bool(scales.kept[group.name][CONSTANT])


def test_the_same_channels_die_however_they_are_scaled():
    """Scales of up to a thousand, on every channel of every group."""
    net = planted()
    exposed, params = fc.expose_clips(net.fn, net.params, net.x)
    spec = fc.find_spec(exposed, params, net.x)
    scaled = apply_table(params, spec, random_log2(spec, reach=10.0))
    pruned = fc.prune_dead_channels(exposed, scaled, net.x)
    assert zeroed(scaled, pruned) == zeroed(net.params, net.pruned)
    old, new = named_leaves(scaled), named_leaves(pruned)
    for path in old:
        if path.startswith("clips/"):
            np.testing.assert_array_equal(new[path], old[path])


def test_int8_per_tensor_gets_better():
    net = planted()
    old, new = (named_leaves(tree)[f"{DEPTHWISE}/kernel"] for tree in (net.params, net.pruned))
    assert np.abs(new).max() == np.abs(np.delete(old, DEAD, axis=-1)).max() < np.abs(old).max()
    config = fc.QuantConfig(act_bits=None)
    clean, noise = net.fn(net.params, net.x), []
    for params in (net.params, net.pruned):
        calibration = fc.calibrate(net.fn, params, [net.x], config)
        quantized = fc.fake_quant(net.fn, config, calibration)(params, net.x)
        noise.append(fc.sqnr(clean, quantized))
    assert noise[1] > noise[0]


def drawn(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return draw("prune", {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})


def pair_fn(p, x):
    return jax.nn.relu(x @ p["a"] + p["b"][None]) @ p["c"]


def linear_fn(p, x):
    return (x @ p["a"] + p["b"][None]) @ p["c"]


X = image(6, 3)
LIVE = drawn(a=(3, 5), b=(5,), c=(5, 4))


def damaged(bias: float, columns: Iterable[int] = (1, 3)) -> dict[str, jax.Array]:
    """Channels 1 and 3 without weights, with this bias and a wide consumer row."""
    which = jnp.asarray(list(columns))
    return {
        "a": LIVE["a"].at[:, which].multiply(1e-20),
        "b": LIVE["b"].at[which].set(bias),
        "c": LIVE["c"].at[which].multiply(90),
    }


def test_dense_channels_that_never_fire_are_zeroed():
    pruned = fc.prune_dead_channels(pair_fn, damaged(-0.5), X)
    for leaf, axis in (("a", 1), ("b", 0), ("c", 0)):
        gone = ~np.moveaxis(np.asarray(pruned[leaf]), axis, 0).reshape(5, -1).any(1)
        assert np.flatnonzero(gone).tolist() == [1, 3], leaf
    np.testing.assert_array_equal(pair_fn(pruned, X), pair_fn(damaged(-0.5), X))


@pytest.mark.parametrize(("fn", "bias"), [(pair_fn, 0.08), (linear_fn, 0.08), (linear_fn, -0.5)])
def test_a_bias_that_reaches_the_consumer_keeps_its_channel(fn, bias):
    """Without a ReLU a negative bias passes as well: a linear bottleneck."""
    params = damaged(bias)
    pruned = fc.prune_dead_channels(fn, params, X)
    jax.tree.map(np.testing.assert_array_equal, pruned, params)


def test_one_reader_without_relu_keeps_the_channel():
    def fn(p, x):
        h = x @ p["a"] + p["b"][None]
        return jax.nn.relu(h) @ p["c"], h @ p["d"]

    params = {**damaged(-0.5), "d": drawn(d=(5, 2))["d"]}
    jax.tree.map(np.testing.assert_array_equal, fc.prune_dead_channels(fn, params, X), params)


def normed_fn(p, x):
    h = (x @ p["a"] + p["b"][None] - p["mean"][None]) * jax.lax.rsqrt(p["var"] + 1e-3)[None]
    return jax.nn.relu(h * p["scale"][None] + p["shift"][None]) @ p["c"]


NORM = {"mean": jnp.zeros(5), "var": jnp.ones(5), "scale": -jnp.ones(5), "shift": jnp.zeros(5)}
FLIPPED = {
    "negated": (lambda p, x: jax.nn.relu(-(x @ p["a"] + p["b"][None])) @ p["c"], {}),
    "factor": (lambda p, x: jax.nn.relu((x @ p["a"] + p["b"][None]) * -2.0) @ p["c"], {}),
    "norm": (normed_fn, NORM),
}


@pytest.mark.parametrize(("fn", "more"), FLIPPED.values(), ids=FLIPPED)
def test_a_negative_bias_that_is_flipped_before_the_relu_keeps_its_channel(fn, more):
    params = {**damaged(-0.5), **more}
    jax.tree.map(np.testing.assert_array_equal, fc.prune_dead_channels(fn, params, X), params)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_gate_keeps_its_channel_also_when_it_is_closed_without_input(bias):
    """`(x a + b) (x g + h)` with a tiny `g`: what passes is `h` times the other factor."""

    def fn(p, x):
        gate = x @ p["g"] + p["h"][None]
        return ((x @ p["a"] + p["b"][None]) * gate) @ p["c"]

    more = drawn(g=(3, 5), h=(5,))
    params = {**LIVE, "b": jnp.zeros(5), "g": more["g"].at[:, 1].multiply(1e-20)}
    params["h"] = more["h"].at[1].set(bias)
    pruned = fc.prune_dead_channels(fn, params, X)
    np.testing.assert_allclose(fn(pruned, X), fn(params, X), rtol=1e-6)


def test_a_channel_whose_direction_alone_is_used_stays():
    """`h / |h|` of a channel of 1e-20 is one."""

    def fn(p, x):
        h = x @ p["a"]
        return h @ p["c"], (h / jnp.abs(h)) @ p["d"]

    params = {"a": LIVE["a"].at[:, 1].multiply(1e-20), "c": LIVE["c"], "d": drawn(d=(5, 2))["d"]}
    jax.tree.map(np.testing.assert_array_equal, fc.prune_dead_channels(fn, params, X), params)


def planted_at_random(net: Any) -> Any:
    """Rows of 1e-20 for a tenth of the channels of every group, biases as they are."""
    rng, leaves = np.random.default_rng(1), named_leaves(net.params)
    for group in fc.find_spec(net.fn, net.params, *net.inputs).groups:
        tiny = np.where(rng.random(group.size) < 0.1, 1e-20, 1.0)
        for site in group.producers:
            leaf = leaves[site.path]
            if leaf.ndim >= 2:
                ids, axes = channels(site, leaf.shape), [axis % leaf.ndim for axis in site.axes]
                ids = ids.transpose(np.argsort(axes)).reshape(
                    [n if axis in axes else 1 for axis, n in enumerate(leaf.shape)]
                )
                factor = np.where(ids < 0, 1.0, tiny[ids])
                leaves[site.path] = leaf * jnp.asarray(factor, leaf.dtype)
    return replace_leaves(net.params, leaves)


ZOO = (
    *("mlp", "vgg", "resnet18_folded", "mobilenetv2_folded", "densenet", "inception"),
    *("shufflenet", "squeeze_excite", "op_outer_gate", "llama", "siamese", "scan_stack"),
)


@pytest.mark.parametrize("name", ZOO)
def test_pruning_never_changes_a_network(name):
    net = build(name)
    params = planted_at_random(net)
    pruned = fc.prune_dead_channels(net.fn, params, *net.inputs)
    old, new = (jax.tree.leaves(jax.jit(net.fn)(p, *net.inputs)) for p in (params, pruned))
    for before, after in zip(old, new, strict=True):
        scale = float(jnp.abs(before).max(initial=0.0))
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("factor", [1.0, 1e-3, 1e3])
def test_small_channels_are_not_dead(factor):
    params = {**LIVE, "a": LIVE["a"].at[:, 1].multiply(1e-4), "c": LIVE["c"] * factor}
    jax.tree.map(np.testing.assert_array_equal, fc.prune_dead_channels(pair_fn, params, X), params)


def test_death_spreads_to_closure():
    """A layer all of whose readers died dies too."""

    def fn(p, x):
        h = jax.nn.relu(x @ p["a"])[:, None]
        dims = ("NWC", "WIO", "NWC")
        h = jax.lax.conv_general_dilated(
            h, p["d"], (1,), "SAME", dimension_numbers=dims, feature_group_count=5
        )
        return jax.nn.relu(h[:, 0]) @ p["c"]

    params = drawn(a=(3, 5), d=(1, 1, 5), c=(5, 4))
    params = {**params, "c": params["c"].at[2].multiply(1e-20)}
    pruned = fc.prune_dead_channels(fn, params, X)
    assert not pruned["a"][:, 2].any()
    assert not pruned["d"][..., 2].any()
    assert not pruned["c"][2].any()


def test_nothing_to_scale_gives_the_same_object_back():
    params = {"a": LIVE["a"]}
    assert fc.prune_dead_channels(lambda p, x: jax.nn.sigmoid(x @ p["a"]), params, X) is params


def clipped_fn(p, x):
    return jax.nn.relu6(x @ p["a"] + p["b"][None]) @ p["c"]


WRAPPED = {
    "plain": lambda tree: tree,
    "collection": lambda tree: {"params": tree},
    "frozen": lambda tree: freeze({"params": tree}),
    "nnx": lambda tree: nnx.State({k: nnx.Param(v) for k, v in tree.items()}),
}


def unwrapped(params: Any) -> Any:
    if isinstance(params, nnx.State):
        return {k: params[k][...] for k in params}
    return params.get("params", params)


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("fn", [pair_fn, clipped_fn], ids=["relu", "relu6"])
def test_the_tree_keeps_its_structure(fn, wrap):
    params = wrap(damaged(-0.5))
    pruned = fc.prune_dead_channels(lambda p, x: fn(unwrapped(p), x), params, X)
    assert jax.tree.structure(pruned) == jax.tree.structure(params)
    assert type(pruned) is type(params)
    assert not isinstance(params, FrozenDict) or isinstance(pruned["params"], FrozenDict)
    assert np.flatnonzero(~np.asarray(unwrapped(pruned)["a"]).any(0)).tolist() == [1, 3]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_keeps_its_dtype(dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), damaged(-0.5))
    pruned = fc.prune_dead_channels(pair_fn, params, X.astype(dtype))
    assert {leaf.dtype for leaf in pruned.values()} == {jnp.dtype(dtype)}
    assert np.flatnonzero(~np.asarray(pruned["a"]).any(0)).tolist() == [1, 3]
