"""Topologies that break rivals, continued: tied weights, shifts, dead channels, depthwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, image, linen, raw, register, tokens

PAIR = (("first", "second"),)


class TiedDecoder(nn.Module):
    """Embedding, two dense layers, logits against the same embedding."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(7, 5)
        x = nn.relu(nn.Dense(6)(embed(ids)))
        return embed.attend(nn.Dense(5)(x))


class UpDepthwise(nn.Module):
    """A transposed depthwise convolution: no Flax layer has it, decoders do."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.normal(), (4, 4, 1, self.features))
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1, 1),
            padding=((2, 2), (2, 2)),
            lhs_dilation=(2, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.features,
        )
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return y + bias.reshape(1, 1, 1, -1)


class Upsampler(nn.Module):
    act: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        x = self.act(UpDepthwise(5)(x))
        return nn.Conv(2, (1, 1))(x)


class Unused(nn.Module):
    """A layer that no output depends on, beside an ordinary pair."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(5, name="first")(x))
        nn.Dense(4, name="dead")(hidden)
        return nn.Dense(2, name="second")(hidden)


def clip(x: jax.Array) -> jax.Array:
    """A clip that ordinary values reach."""
    return jnp.clip(x, 0.0, 2.0)


class Clipped(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2, name="second")(clip(nn.Dense(5, name="first")(x)))


def autoencoder_fn(params: Any, x: jax.Array) -> jax.Array:
    """The decoder is the encoder's transpose: one leaf as producer and as consumer."""
    first = params["first"]
    hidden = nn.relu(x @ first["kernel"] + first["bias"][None])
    return hidden @ first["kernel"].T


def shift_fn(params: Any, x: jax.Array) -> jax.Array:
    """A learned shift is added between the layers: one number, or one a channel."""
    first, second = params["first"], params["second"]
    hidden = nn.relu(x @ first["kernel"] + first["bias"][None])
    hidden = hidden + jnp.atleast_1d(params["shift"])[None]
    return hidden @ second["kernel"] + second["bias"][None]


def dense_tree(width: int, **more: Any) -> dict[str, Any]:
    first = {"kernel": (4, width), "bias": (width,)}
    return {"first": first, "second": {"kernel": (width, 3), "bias": (3,)}, **more}


def damaged(net: Network, column: float, bias: float, row: float) -> Network:
    """The first channels of the hidden layer: kernel column, bias and consumer row set."""
    params = net.params["params"]
    first, second = params["first"], params["second"]
    first = {
        "kernel": first["kernel"].at[:, :2].multiply(column),
        "bias": first["bias"].at[:2].set(bias),
    }
    second = {**second, "kernel": second["kernel"].at[1].multiply(row)}
    tree = {"params": {**params, "first": first, "second": second}}
    return dataclasses.replace(net, params=tree)


@register
def tied_weights_legal(name: str) -> Network:
    ids, shape = tokens(2, 4, vocabulary=7), (2, 4, 7)
    pairs, illegal = (("Dense_0", "Dense_1"),), (("Embed_0", "Dense_0"),)
    note = "lookup and logits share the embedding: both ends move, with opposite powers"
    facts = {"pairs": pairs, "illegal": illegal, "scales": 6 + 5, "note": note}
    return linen(name, TiedDecoder(), ids, shape=shape, **facts)


@register
def tied_weights_illegal(name: str) -> Network:
    leaves = {"first": {"kernel": (4, 5), "bias": (5,)}}
    return raw(name, autoencoder_fn, leaves, image(6, 4), shape=(6, 4), scales=0)


@register
def scalar_shift_illegal(name: str) -> Network:
    facts = {"illegal": PAIR, "scales": 1, "note": "one scale for all channels and the shift"}
    return raw(name, shift_fn, dense_tree(5, shift=()), image(6, 4), shape=(6, 3), **facts)


@register
def channel_shift_legal(name: str) -> Network:
    facts = {"illegal": PAIR, "scales": 5, "note": "legal once the shift is in the group"}
    return raw(name, shift_fn, dense_tree(5, shift=(5,)), image(6, 4), shape=(6, 3), **facts)


@register
def dead_channels_legal(name: str) -> Network:
    net = linen(name, Unused(), image(6, 4), shape=(6, 2), pairs=PAIR, scales=5)
    note = "two producer channels and one consumer row are exactly zero"
    return dataclasses.replace(damaged(net, column=0.0, bias=0.0, row=0.0), note=note)


@register
def dead_channels_illegal(name: str) -> Network:
    net = linen(name, Clipped(), image(6, 4), shape=(6, 2), illegal=PAIR, scales=0)
    note = "two producer channels never fire, and a clip blocks the others"
    return dataclasses.replace(damaged(net, column=0.0, bias=-1.0, row=1.0), note=note)


@register
def constant_channels_legal(name: str) -> Network:
    net = linen(name, Unused(), image(6, 4), shape=(6, 2), pairs=PAIR, scales=5)
    note = "two channels have weights of 1e-20 and emit their bias"
    return dataclasses.replace(damaged(net, column=1e-20, bias=0.08, row=1.0), note=note)


@register
def transposed_depthwise_legal(name: str) -> Network:
    pairs, illegal = (("Conv_0", "UpDepthwise_0", "Conv_1"),), (("Conv_0", "Conv_1"),)
    inputs, facts = image(1, 3, 3, 3), {"pairs": pairs, "illegal": illegal, "scales": 5 + 5}
    return linen(name, Upsampler(), inputs, shape=(1, 6, 6, 2), **facts)


@register
def transposed_depthwise_illegal(name: str) -> Network:
    pairs, illegal = (("Conv_0", "UpDepthwise_0"),), (("UpDepthwise_0", "Conv_1"),)
    inputs, facts = image(1, 3, 3, 3), {"pairs": pairs, "illegal": illegal, "scales": 5}
    return linen(name, Upsampler(clip), inputs, shape=(1, 6, 6, 2), **facts)
