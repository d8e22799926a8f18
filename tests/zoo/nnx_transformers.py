"""Attention, sharing and gates in NNX: GPT with separate projections, siamese, squeeze-excite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.base import Network, image, nnx_net, register, tokens
from zoo.transformers import VOCABULARY, attend


class LayerNorm(nnx.Module):
    """nnx.LayerNorm mixes float32 into float64, which strict promotion refuses."""

    def __init__(self, features: int, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones((features,)))
        self.bias = nnx.Param(jnp.zeros((features,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)
        return x * self.scale[...][None, None] + self.bias[...][None, None]


def causal(q: jax.Array, k: jax.Array, v: jax.Array, **_: Any) -> jax.Array:
    """NNX's default takes its softmax in float32, which strict promotion refuses as well."""
    return attend(q, k, v, causal=True)


class Block(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = LayerNorm(width, rngs), LayerNorm(width, rngs)
        self.attention = nnx.MultiHeadAttention(
            2, width, decode=False, attention_fn=causal, rngs=rngs
        )
        self.up = nnx.Linear(width, 12, rngs=rngs)
        self.down = nnx.Linear(12, width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    """The head is the embedding: one Variable, used twice (nnx.Embed would fix float32)."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = nnx.Param(jnp.zeros((VOCABULARY, 8)))
        self.blocks = nnx.Sequential(Block(8, rngs), Block(8, rngs))
        self.norm = LayerNorm(8, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        table = self.embedding[...]
        return self.norm(self.blocks(table[ids])) @ table.T


class Siamese(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.second = nnx.Linear(6, 5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        u, v = (nnx.relu(self.second(nnx.relu(self.first(x)))) for x in (a, b))
        return self.head(jnp.abs(u - v))


class SENet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 6, (3, 3), rngs=rngs)
        self.squeeze = nnx.Linear(6, 3, rngs=rngs)
        self.excite = nnx.Linear(3, 6, rngs=rngs)
        self.conv2 = nnx.Conv(6, 5, (3, 3), rngs=rngs)
        self.head = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.conv1(x))
        gate = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(x.mean(axis=(1, 2), keepdims=True)))))
        x = nnx.relu(self.conv2(x * gate))
        return self.head(x.mean(axis=(1, 2)))


@register
def gpt_nnx(name: str) -> Network:
    norm, query, value = 8, 8, 8
    pairs = tuple(
        (f"blocks/layers/{i}/attention/value", f"blocks/layers/{i}/attention/out") for i in range(2)
    )
    facts = {"pairs": pairs, "scales": 2 * (2 * norm + query + value)}
    note = "the key bias is unused: softmax does not see it"
    inputs, shape = tokens(2, 5, vocabulary=VOCABULARY), (2, 5, VOCABULARY)
    return nnx_net(name, GPT, inputs, shape=shape, note=note, **facts)


@register
def siamese_nnx(name: str) -> Network:
    inputs, pairs = (image(2, 4), image(2, 4, seed=1)), (("first", "second", "head"),)
    return nnx_net(name, Siamese, *inputs, shape=(2, 3), pairs=pairs, scales=6 + 5)


@register
def squeeze_excite_nnx(name: str) -> Network:
    pairs = (("conv1", ("squeeze", "conv2")), ("squeeze", "excite"), ("conv2", "head"))
    inputs, scales = image(1, 6, 6, 3), 6 + 3 + 5
    return nnx_net(name, SENet, inputs, shape=(1, 4), pairs=pairs, scales=scales)
