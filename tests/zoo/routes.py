"""How channels travel between layers: heads, gates, resizing, outer products, made kernels."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, avg_pool, image, linen, raw, register
from zoo.topologies import topology


class FeaturePyramid(nn.Module):
    """Lateral convolutions add into one stream of every resolution; one head reads them all."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        levels = []
        for width in (4, 6, 8):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
            levels.append(x)
        laterals = [nn.Conv(5, (1, 1), name=f"lateral_{i}")(x) for i, x in enumerate(levels)]
        hidden, head = nn.Conv(5, (3, 3), name="hidden"), nn.Conv(2, (1, 1), name="head")
        merged = [laterals[-1]]
        for lateral in laterals[-2::-1]:
            merged.append(lateral + merged[-1].repeat(2, axis=1).repeat(2, axis=2))
        return tuple(head(nn.relu(hidden(x))) for x in merged)


def made_kernel_fn(params: Any, x: jax.Array) -> jax.Array:
    """Mixture of kernels weighted by learned numbers, times a learned temperature."""
    kernel = jnp.einsum("k,kio->io", params["mix"], params["bank"])
    x = nn.relu(x @ kernel + params["bias"][None]) * params["temperature"]
    return x @ params["head"]


def cosine_fn(params: Any, x: jax.Array) -> jax.Array:
    """Cosine classifier: both operands on the unit sphere."""
    x = nn.leaky_relu(x @ params["w"] + params["b"][None])
    x = x / jnp.sqrt(jnp.square(x).sum(axis=-1, keepdims=True))
    head = params["head"]
    return x @ (head / jnp.sqrt(jnp.square(head).sum(axis=0, keepdims=True)))


def standardized_fn(params: Any, x: jax.Array) -> jax.Array:
    """Weight standardisation: columns centred, of unit spread, times a gain."""
    w = params["w"] - params["w"].mean(axis=0, keepdims=True)
    w = w / jnp.sqrt(jnp.square(w).mean(axis=0, keepdims=True))
    return nn.relu(x @ w * params["gain"][None] + params["b"][None]) @ params["head"]


@register
def feature_pyramid(name: str) -> Network:
    laterals = tuple(f"lateral_{i}" for i in range(3))
    pairs = (
        ("Conv_0", ("Conv_1", "lateral_0")),
        ("Conv_1", ("Conv_2", "lateral_1")),
        ("Conv_2", "lateral_2"),
        (laterals, "hidden"),
        ("hidden", "head"),
    )
    shape, scales = ((1, 3, 3, 2), (1, 6, 6, 2), (1, 12, 12, 2)), 4 + 6 + 8 + 5 + 5
    inputs = image(1, 24, 24, 3)
    return linen(name, FeaturePyramid(), inputs, shape=shape, pairs=pairs, scales=scales)


@register
def two_heads(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> dict[str, jax.Array]:
        x = nn.relu(conv(5)(x))
        return {"boxes": conv(4)(x), "classes": nn.sigmoid(conv(2)(x))}

    pairs, shape = (("Conv_0", ("Conv_1", "Conv_2")),), ((1, 4, 4, 4), (1, 4, 4, 2))
    return topology(name, body, shape=shape, pairs=pairs, scales=5)


@register
def input_concat(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        return conv(2)(jnp.concatenate([x, nn.relu(conv(4)(x))], axis=-1))

    return topology(name, body, scales=4)


@register
def channel_swap_halves(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        a, b = jnp.split(nn.relu(conv(6)(x)), 2, axis=-1)
        return conv(2)(jnp.concatenate([b, a], axis=-1))

    illegal = (("Conv_0", "Conv_1"),)
    return topology(name, body, illegal=illegal, scales=6, note="legal with the halves swapped")


@register
def pixel_shuffle(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(8)(x)).reshape((1, 4, 4, 2, 2, 2))
        x = jnp.transpose(x, (0, 1, 3, 2, 4, 5)).reshape((1, 8, 8, 2))
        return conv(2)(x)

    note = "four producer channels land in one consumer channel"
    return topology(name, body, shape=(1, 8, 8, 2), scales=2, note=note)


@register
def space_to_depth(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(3)(x)).reshape((1, 2, 2, 2, 2, 3))
        return conv(2)(jnp.transpose(x, (0, 1, 3, 2, 4, 5)).reshape((1, 2, 2, 12)))

    return topology(name, body, shape=(1, 2, 2, 2), scales=3)


@register
def bilinear_resize(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(5)(x))
        return conv(2)(jax.image.resize(x, (1, 8, 8, 5), "bilinear"))

    pairs = (("Conv_0", "Conv_1"),)
    return topology(name, body, shape=(1, 8, 8, 2), pairs=pairs, scales=5)


@register
def high_pass(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = conv(5)(x)
        x = nn.relu(x - avg_pool(x, (3, 3), 1)) + x.max(axis=(1, 2), keepdims=True)
        return conv(2)(x)

    return topology(name, body, pairs=(("Conv_0", "Conv_1"),), scales=5)


@register
def spatial_gate(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(5)(x))
        seen = jnp.concatenate([x.mean(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)], -1)
        return conv(2)(x * nn.sigmoid(conv(1)(seen)))

    illegal = (("Conv_0", "Conv_2"),)
    note = "the gate reads all channels together: one scale for all"
    return topology(name, body, illegal=illegal, scales=1, note=note)


@register
def highway(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(5)(x))
        gate = nn.sigmoid(conv(5)(x))
        return conv(2)(gate * nn.relu(conv(5)(x)) + (1 - gate) * x)

    pairs = ((("Conv_0", "Conv_2"), ("Conv_1", "Conv_2", "Conv_3")),)
    return topology(name, body, pairs=pairs, illegal=(("Conv_2", "Conv_3"),), scales=5)


@register
def bilinear_pooling(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        a, b = nn.relu(conv(4)(x)), nn.relu(conv(3)(x))
        outer = jnp.einsum("nhwi,nhwj->nij", a, b)
        return nn.Dense(2)(outer.reshape((1, -1)))

    note = "the consumer's rows are pairs of channels: two sites on one axis"
    return topology(name, body, shape=(1, 2), scales=4 + 3, note=note)


@register
def made_kernel(name: str) -> Network:
    leaves = {"mix": (3,), "bank": (3, 4, 5), "bias": (5,), "temperature": (), "head": (5, 3)}
    mix, hidden, temperature = 3, 5, 1
    scales = mix + hidden + temperature
    return raw(name, made_kernel_fn, leaves, image(6, 4), shape=(6, 3), scales=scales)


@register
def cosine_head(name: str) -> Network:
    leaves = {"w": (4, 5), "b": (5,), "head": (5, 3)}
    return raw(name, cosine_fn, leaves, image(6, 4), shape=(6, 3), scales=1 + 3)


@register
def weight_standardization(name: str) -> Network:
    leaves = {"w": (4, 5), "gain": (5,), "b": (5,), "head": (5, 3)}
    return raw(name, standardized_fn, leaves, image(6, 4), shape=(6, 3), scales=5 + 5)
