"""Layouts that the zoo lacks, run: declared scales leave the function alone."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from by_hand import assert_preserved
from flaxcle import Spec
from flaxcle.clips import expose_clips
from zoo import build
from zoo.base import draw, image


def linen(module: nn.Module, x: jax.Array, *pairs: Any) -> Spec:
    """Checks the pairs on a Linen module and returns the spec."""
    params = draw("declared", jax.eval_shape(module.init, jax.random.key(0), x))
    spec = Spec.from_pairs(pairs, params)
    assert_preserved(module.apply, params, spec, x)
    return spec


class Layers(nn.Module):
    """Layers in a row with ReLU between; a function may stand for a layer."""

    layers: Any

    def setup(self) -> None:
        self.row = self.layers()

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.row[:-1]:
            x = nn.relu(layer(x))
        return self.row[-1](x)


def test_transposed_kernels_without_bias() -> None:
    def layers() -> list[Any]:
        up = {"strides": (2, 2), "use_bias": False, "transpose_kernel": True}
        return [nn.Conv(4, (3, 3)), nn.ConvTranspose(6, (2, 2), **up), nn.Conv(3, (1, 1))]

    spec = linen(Layers(layers), image(1, 4, 4, 2), ("row_0", "row_1", "row_2"))
    assert spec.scales == 4 + 6


def test_three_dimensional_grouped_and_depthwise() -> None:
    def layers() -> list[Any]:
        return [
            nn.Conv(6, (2, 3, 3)),
            nn.Conv(12, (3, 3, 3), feature_group_count=6),
            nn.Conv(8, (1, 1, 1), feature_group_count=4),
            nn.ConvTranspose(5, (2, 2, 2), strides=(2, 2, 2)),
            nn.Conv(2, (1, 1, 1)),
        ]

    chain = ("row_0", "row_1", "row_2", "row_3", "row_4")
    assert linen(Layers(layers), image(1, 3, 4, 4, 2), chain).scales == 6 + 12 + 8 + 5


def test_several_axes_of_features_and_back() -> None:
    def layers() -> list[Any]:
        return [
            nn.DenseGeneral((2, 3)),
            nn.DenseGeneral((3, 4), axis=(-2, -1)),
            nn.DenseGeneral(5, axis=(-2, -1)),
            nn.Dense(2),
        ]

    spec = linen(Layers(layers), image(4, 7), ("row_0", "row_1", "row_2", "row_3"))
    assert [group.shape for group in spec.groups] == [(2, 3), (3, 4), (5,)]


def test_without_bias_the_suffix_names_the_features() -> None:
    def layers() -> list[Any]:
        plain = {"use_bias": False}
        return [nn.DenseGeneral((2, 3), **plain), nn.DenseGeneral(5, axis=(-2, -1), **plain)]

    spec = linen(Layers(layers), image(4, 7), ("row_0[out=1+2]", "row_1"))
    assert spec.groups[0].shape == (2, 3)
    assert linen(Layers(layers), image(4, 7), ("row_0", "row_1")).groups[0].shape == (3,)


def test_flattened_concat_with_live_norm() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            a = nn.Conv(3, (3,))(x)
            b = nn.Conv(4, (3,))(x)
            both = jnp.concatenate([a, b], axis=-1)
            both = nn.relu(nn.BatchNorm(use_running_average=True)(both))
            both = nn.relu(nn.Conv(7, (3,), feature_group_count=7)(both))
            return nn.Dense(2)(both.reshape((both.shape[0], -1)))

    spec = linen(
        Net(),
        image(2, 5, 2),
        ("Conv_0", "BatchNorm_0[at=0]", "Conv_2[at=0]"),
        ("Conv_2", "Dense_0"),
    )
    assert spec.scales == 3 + 7


def test_weight_norm_scales_its_gain() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(2)(nn.relu(nn.WeightNorm(nn.Dense(5))(x)))

    spec = linen(Net(), image(4, 3), (("WeightNorm_0", "Dense_1/bias"), "Dense_0"))
    assert spec.scales == 5


def test_layers_stacked_by_scan() -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return x + nn.Dense(4)(nn.relu(nn.Dense(6)(x))), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            stack = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            return stack(name="stack")(x, None)[0]

    pair = ("stack/Dense_1[out=0+2]", "stack/Dense_0[in=0+1]")
    spec = linen(Net(), image(2, 4), pair)
    assert spec.groups[0].shape == (3, 6)


def test_clip_bounds_move_with_their_layer() -> None:
    def fn(tree: Any, x: jax.Array) -> jax.Array:
        a, b, bounds = tree["params"]["a"], tree["params"]["b"], tree["clips"]["a"]
        hidden = x @ a["kernel"] + a["bias"][None]
        return jnp.clip(hidden, bounds["min"][None], bounds["max"][None]) @ b["kernel"]

    shapes = {
        "params": {"a": {"kernel": (3, 5), "bias": (5,)}, "b": {"kernel": (5, 2)}},
        "clips": {"a": {"min": (5,), "max": (5,)}},
    }
    params = arrays(shapes)
    params["clips"]["a"] = {"min": jnp.full(5, -0.2), "max": jnp.full(5, 0.3)}
    spec = Spec.from_pairs([("a", "b")], params)
    assert len(spec.groups[0].sites) == 5
    assert_preserved(fn, params, spec, image(4, 3))


def test_exposed_clips_move_with_their_layers() -> None:
    network = build("mobilenetv2")
    fn, params = expose_clips(network.fn, network.params, *network.inputs)
    block = "InvertedResidual_1"
    first, second, last = (f"{block}/ConvNorm_{i}/Conv_0" for i in range(3))
    norms = [f"{block}/ConvNorm_{i}/BatchNorm_0" for i in range(2)]
    spec = Spec.from_pairs([(first, norms[0], second, norms[1], last)], params)
    moved = {site.path for group in spec.groups for site in group.sites}
    assert {f"clips/{first}/max", f"clips/{second}/max"} <= moved
    assert_preserved(fn, params, spec, *network.inputs)


def test_a_loop_over_one_layer() -> None:
    def fn(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        hidden = jnp.zeros((x.shape[0], 5), x.dtype)
        for _ in range(3):
            hidden = jax.nn.relu(x @ params["inner"] + hidden @ params["loop"] + params["b"][None])
        return hidden @ params["outer"]

    params = arrays({"inner": (3, 5), "loop": (5, 5), "b": (5,), "outer": (5, 2)})
    spec = Spec.from_pairs([(("inner", "loop", "b"), ("loop", "outer"))], params)
    assert_preserved(fn, params, spec, image(4, 3))


class Torchlike(eqx.Module):
    """Channels first, kernels (out, in, ...), as Equinox and PyTorch have them."""

    stem: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    grouped: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    body: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    head: eqx.nn.MLP

    def __init__(self) -> None:
        keys = jax.random.split(jax.random.key(0), 7)
        self.stem = eqx.nn.Conv2d(2, 4, 3, key=keys[0])
        self.depthwise = eqx.nn.Conv2d(4, 8, 3, groups=4, key=keys[1])
        self.grouped = eqx.nn.Conv2d(8, 6, 1, groups=2, use_bias=False, key=keys[2])
        self.norm = eqx.nn.GroupNorm(3, 6)
        self.body = eqx.nn.Conv2d(6, 5, 1, key=keys[3])
        self.up = eqx.nn.ConvTranspose2d(5, 3, 2, stride=2, key=keys[4])
        self.head = eqx.nn.MLP(3 * 4 * 4, 2, 7, 1, activation=jax.nn.relu, key=keys[5])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.relu(self.stem(x))
        x = jax.nn.relu(self.depthwise(x))
        x = self.norm(self.grouped(x))
        x = jax.nn.relu(self.up(jax.nn.relu(self.body(x))))
        return self.head(x.reshape(-1))


def test_channels_first() -> None:
    model = eqx.filter_eval_shape(Torchlike)
    arrays_of, static = eqx.partition(model, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, static))(x)

    chains = [
        ("stem", "depthwise", "grouped"),
        ("norm", "body", "up", "head/layers/0", "head/layers/1"),
    ]
    spec = Spec.from_pairs(chains, arrays_of)
    assert spec == Spec.from_pairs(chains, model)
    assert spec.scales == 4 + 8 + 6 + 5 + 3 + 7
    flat = next(site for site in spec.groups[4].consumers)
    assert np.asarray(flat.index).tolist() == np.repeat(np.arange(3), 16).tolist()
    params = draw("torchlike", arrays_of)
    assert_preserved(fn, params, spec, image(2, 2, 6, 6))


def arrays(shapes: Any) -> Any:
    """Arrays of these shapes with values that look trained."""
    is_shape = lambda node: isinstance(node, tuple)  # noqa: E731
    structs = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=is_shape)
    return draw("arrays", structs)
