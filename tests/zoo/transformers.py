"""Attention with LayerNorm (Linen): ViT, GPT-2, multi-head attention layers, mixture of experts."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, image, layer_norm, linen, register, tokens

VOCABULARY = 11


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """softmax(q k / sqrt(d)) v over (batch, time, heads, depth)."""
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    if causal:
        mask = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits), v)


class EncoderBlock(nn.Module):
    heads: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + nn.MultiHeadDotProductAttention(self.heads)(layer_norm(x))
        y = nn.gelu(nn.Dense(12)(layer_norm(x)))
        return x + nn.Dense(x.shape[-1])(y)


class ViT(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(8, (4, 4), strides=4)(x)
        x = x.reshape((x.shape[0], -1, 8))
        token = self.param("token", nn.initializers.normal(), (1, 1, 8))
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 8)), x], axis=1)
        x = x + self.param("position", nn.initializers.normal(), (1, *x.shape[1:]))
        x = EncoderBlock()(EncoderBlock()(x))
        return nn.Dense(5)(layer_norm(x)[:, 0])


class GPT2Block(nn.Module):
    heads: int = 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        qkv = nn.Dense(3 * width, name="qkv")(layer_norm(x))
        split = (*x.shape[:-1], self.heads, width // self.heads)
        q, k, v = (part.reshape(split) for part in jnp.split(qkv, 3, axis=-1))
        y = attend(q, k, v, causal=True).reshape(x.shape)
        x = x + nn.Dense(width, name="proj")(y)
        y = nn.gelu(nn.Dense(12, name="up")(layer_norm(x)))
        return x + nn.Dense(width, name="down")(y)


class GPT2(nn.Module):
    """Learned positions, fused projections, embedding tied to the head."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        embed = nn.Embed(VOCABULARY, 8)
        x = embed(ids)
        x = x + self.param("position", nn.initializers.normal(), (1, *x.shape[1:]))
        x = GPT2Block()(GPT2Block()(x))
        return embed.attend(layer_norm(x))


class AttentionLayers(nn.Module):
    """Cross-attention by DenseGeneral without softmax bias, ReLU between two of them."""

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        heads = lambda name: nn.DenseGeneral((2, 3), name=name)  # noqa: E731
        y = attend(heads("query")(x), heads("key")(memory), heads("value")(memory), causal=False)
        y = nn.relu(nn.DenseGeneral(6, axis=(-2, -1), name="out")(y))
        y = nn.relu(nn.DenseGeneral((2, 4), name="grid")(y))
        return nn.DenseGeneral(3, axis=(-2, -1), name="head")(y)


class MixtureOfExperts(nn.Module):
    """Every expert computes every token; the router weighs them, the best two or all."""

    best: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        experts, width, hidden = 4, x.shape[-1], 5
        logits = nn.Dense(experts, name="router")(x)
        if self.best is not None:
            floor = jax.lax.top_k(logits, self.best)[0][..., -1:]
            logits = jnp.where(logits < floor, -jnp.inf, logits)
        up = self.param("up", nn.initializers.normal(), (experts, width, hidden))
        shift = self.param("up_bias", nn.initializers.normal(), (experts, hidden))
        down = self.param("down", nn.initializers.normal(), (experts, hidden, width))
        h = nn.relu(jnp.einsum("btd,edf->btef", x, up) + shift[None, None])
        out = jnp.einsum("btef,efd->bted", h, down)
        return x + jnp.einsum("bte,bted->btd", nn.softmax(logits), out)


class EmbedDense(nn.Module):
    """Bag of words: lookup, sum over the words, two dense layers."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, 6)(ids).sum(axis=1)
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x)))


def attention_pairs(blocks: list[str], value: str, out: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{b}/{value}", f"{b}/{out}") for b in blocks)


@register
def vit(name: str) -> Network:
    attention = "MultiHeadDotProductAttention_0"
    blocks = [f"EncoderBlock_{i}/{attention}" for i in range(2)]
    pairs = attention_pairs(blocks, "value", "out")
    norm, query, value = 8, 8, 8
    scales = 2 * (2 * norm + query + value) + norm
    note = "the key bias is unused: softmax does not see it"
    inputs = image(1, 8, 8, 3)
    return linen(name, ViT(), inputs, shape=(1, 5), pairs=pairs, scales=scales, note=note)


@register
def gpt2(name: str) -> Network:
    norm, query, value = 8, 8, 8
    scales = 2 * (2 * norm + query + value)
    note = "the key third of the fused bias is unused: softmax does not see it"
    inputs = tokens(2, 6, vocabulary=VOCABULARY)
    return linen(name, GPT2(), inputs, shape=(2, 6, VOCABULARY), scales=scales, note=note)


@register
def cross_attention(name: str) -> Network:
    pairs, scales = (("value", "out"), ("out", "grid"), ("grid", "head")), 6 + 6 + 6 + 8
    x, memory = image(2, 3, 5), image(2, 4, 5, seed=1)
    note = "the key bias is unused: softmax does not see it"
    net = AttentionLayers()
    return linen(name, net, x, memory, shape=(2, 3, 3), pairs=pairs, scales=scales, note=note)


@register
def moe(name: str) -> Network:
    return linen(name, MixtureOfExperts(), image(2, 3, 6), shape=(2, 3, 6), scales=4 * 5)


@register
def moe_top2(name: str) -> Network:
    net, inputs = MixtureOfExperts(2), image(2, 3, 6)
    return linen(name, net, inputs, shape=(2, 3, 6), scales=4 * 5)


@register
def embed_dense(name: str) -> Network:
    pairs, inputs = (("Embed_0", "Dense_1", "Dense_0"),), tokens(2, 4, vocabulary=VOCABULARY)
    return linen(name, EmbedDense(), inputs, shape=(2, 3), pairs=pairs, scales=6 + 5)
