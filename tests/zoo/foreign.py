"""Networks without Flax: Equinox modules, and plain functions over plain trees."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from zoo.base import Network, draw, image, raw, register, shapes, tokens
from zoo.transformers import VOCABULARY, attend


class EquinoxCNN(eqx.Module):
    """Channels first, kernels (out, in, height, width), one example at a time."""

    conv1: eqx.nn.Conv2d
    conv2: eqx.nn.Conv2d
    pool: eqx.nn.MaxPool2d
    mlp: eqx.nn.MLP

    def __init__(self, key: jax.Array):
        self.conv1 = eqx.nn.Conv2d(3, 5, 3, padding=1, key=key)
        self.conv2 = eqx.nn.Conv2d(5, 6, 3, stride=2, key=key)
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.mlp = eqx.nn.MLP(6, 3, 7, 2, key=key)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.pool(jax.nn.relu(self.conv1(x)))
        x = jax.nn.relu(self.conv2(x))
        return self.mlp(x.mean(axis=(1, 2)))


def attention_raw(params: Any, ids: jax.Array) -> jax.Array:
    """GPT with projections fused as (3, heads, depth), its layers in a list."""
    x = params["embedding"][ids] + params["position"][None]
    for layer in params["layers"]:
        qkv = jnp.einsum("btd,dshk->sbthk", norm(x, layer["norm1"]), layer["qkv"])
        q, k, v = qkv + layer["qkv_bias"][:, None, None]
        y = attend(q, k, v, causal=True)
        x = x + jnp.einsum("bthk,hkd->btd", y, layer["proj"])
        h = jax.nn.gelu(norm(x, layer["norm2"]) @ layer["up"])
        x = x + h @ layer["down"]
    return norm(x, params["norm"]) @ params["head"]


def norm(x: jax.Array, params: Any) -> jax.Array:
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-5)
    return x * params["scale"][None, None] + params["bias"][None, None]


def graph_attention(params: Any, nodes: jax.Array, edges: jax.Array) -> jax.Array:
    """Message passing over a dense graph by linear attention: no softmax, so heads have a scale."""
    x = jax.nn.relu(nodes @ params["embed"] + params["embed_bias"][None])
    q, k, v = (x @ params[name] for name in ("q", "k", "v"))
    x = jax.nn.relu(((q @ k.T) * edges) @ v)
    x = segment_mean(x) @ params["pool"]
    return jax.nn.relu(x) @ params["head"]


def segment_mean(x: jax.Array) -> jax.Array:
    """Mean of the even and of the odd nodes by scatter-add."""
    ids = jnp.arange(x.shape[0]) % 2
    return jax.ops.segment_sum(x, ids, num_segments=2) / (x.shape[0] / 2)


def low_rank(params: Any, x: jax.Array) -> jax.Array:
    """A dense layer plus its LoRA update, then one with weight normalisation."""
    x = jax.nn.relu(x @ (params["w"] + params["a"] @ params["b"]) + params["bias"][None])
    direction = params["v"] / jnp.sqrt(jnp.square(params["v"]).sum(axis=0, keepdims=True))
    return jax.nn.relu(x @ (direction * params["g"][None])) @ params["head"]


def zero_pad_shortcut(params: Any, x: jax.Array) -> jax.Array:
    """ResNet's option A: the shortcut subsamples and pads new channels with zeros."""
    conv = lambda x, w, stride: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = jax.nn.relu(conv(x, params["stem"], 1))
    y = conv(jax.nn.relu(conv(x, params["first"], 2)), params["second"], 1)
    skip = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1)))
    return jax.nn.relu(skip + y).mean(axis=(1, 2)) @ params["head"]


@register
def equinox_cnn(name: str) -> Network:
    abstract = eqx.filter_eval_shape(EquinoxCNN, jax.random.key(0))
    arrays, static = eqx.partition(abstract, lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(params, static))(x)

    params, inputs = draw(name, arrays), (image(2, 3, 9, 9),)
    return Network(name, fn, params, inputs, shapes((2, 3)), scales=5 + 6 + 7 + 7)


@register
def gpt_raw(name: str) -> Network:
    gain = {"scale": (8,), "bias": (8,)}
    layer = {
        "norm1": gain,
        "qkv": (8, 3, 2, 4),
        "qkv_bias": (3, 2, 4),
        "proj": (2, 4, 8),
        "norm2": gain,
        "up": (8, 10),
        "down": (10, 8),
    }
    leaves = {"embedding": (VOCABULARY, 8), "position": (5, 8), "layers": [layer, layer]}
    leaves |= {"norm": gain, "head": (8, VOCABULARY)}
    ids, shape = tokens(2, 5, vocabulary=VOCABULARY), (2, 5, VOCABULARY)
    scales = 2 * (8 + 8 + 8 + 8) + 8
    note = "the key third of the fused bias is unused: softmax does not see it"
    return raw(name, attention_raw, leaves, ids, shape=shape, scales=scales, note=note)


@register
def linear_attention(name: str) -> Network:
    leaves = {"embed": (3, 6), "embed_bias": (6,), "q": (6, 4), "k": (6, 4), "v": (6, 5)}
    leaves |= {"pool": (5, 4), "head": (4, 2)}
    inputs = image(6, 3), image(6, 6, seed=1)
    return raw(name, graph_attention, leaves, *inputs, shape=(2, 2), scales=6 + 4 + 5 + 4 + 1)


@register
def lora_weight_norm(name: str) -> Network:
    leaves = {"w": (4, 6), "a": (4, 2), "b": (2, 6), "bias": (6,), "v": (6, 5), "g": (5,)}
    leaves |= {"head": (5, 3)}
    rank, directions, gains, whole = 2, 5, 5, 1
    note = "weight normalisation ties the hidden channels: they move together or not at all"
    facts = {"scales": rank + directions + gains + whole, "note": note}
    return raw(name, low_rank, leaves, image(6, 4), shape=(6, 3), **facts)


@register
def resnet_zero_pad(name: str) -> Network:
    leaves = {"stem": (3, 3, 3, 4), "first": (3, 3, 4, 5), "second": (3, 3, 5, 6), "head": (6, 3)}
    scales = 4 + 5 + 2
    return raw(name, zero_pad_shortcut, leaves, image(1, 8, 8, 3), shape=(1, 3), scales=scales)
