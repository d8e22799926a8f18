"""LLaMA and its relatives (Linen): RMSNorm, rotary positions, grouped queries, gated MLP."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, linen, register, rms_norm, tokens
from zoo.transformers import VOCABULARY, attend

WIDTH, HEADS, DEPTH, HIDDEN = 8, 4, 4, 10


def rope_half(x: jax.Array) -> jax.Array:
    """Rotary positions; dimension i is paired with i + depth / 2 (LLaMA in Hugging Face)."""
    cos, sin = _angles(x)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rope_interleaved(x: jax.Array) -> jax.Array:
    """Rotary positions; dimension 2i is paired with 2i + 1 (the paper)."""
    cos, sin = _angles(x)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def _angles(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    half = x.shape[-1] // 2
    rate = 100.0 ** (-jnp.arange(half, dtype=x.dtype) / half)
    angle = jnp.arange(x.shape[1], dtype=x.dtype)[:, None] * rate[None]
    return jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]


class GemmaNorm(nn.Module):
    """RMSNorm that stores its gain minus one."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gain = 1 + self.param("offset", nn.initializers.zeros, (x.shape[-1],))
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)
        return x * gain.reshape((1,) * (x.ndim - 1) + (-1,))


def gemma_norm(x: jax.Array, name: str) -> jax.Array:
    return GemmaNorm(name=name)(x)


class LlamaBlock(nn.Module):
    kv_heads: int = HEADS
    interleaved: bool = False
    qk_norm: bool = False
    gemma: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = gemma_norm if self.gemma else rms_norm
        x = x + self.attention(norm(x, "attention_norm"))
        h = norm(x, "mlp_norm")
        gate = nn.Dense(HIDDEN, use_bias=False, name="gate")(h)
        up = nn.Dense(HIDDEN, use_bias=False, name="up")(h)
        act = nn.gelu if self.gemma else nn.silu
        return x + nn.Dense(x.shape[-1], use_bias=False, name="down")(act(gate) * up)

    def attention(self, h: jax.Array) -> jax.Array:
        heads = lambda n, name: nn.DenseGeneral((n, DEPTH), use_bias=False, name=name)(h)  # noqa: E731
        q, k, v = heads(HEADS, "q"), heads(self.kv_heads, "k"), heads(self.kv_heads, "v")
        if self.qk_norm:
            q, k = rms_norm(q, "q_norm"), rms_norm(k, "k_norm")
        rope = rope_interleaved if self.interleaved else rope_half
        k, v = (jnp.repeat(part, HEADS // self.kv_heads, axis=2) for part in (rope(k), v))
        y = attend(rope(q), k, v, causal=True)
        return nn.DenseGeneral(WIDTH, axis=(-2, -1), use_bias=False, name="o")(y)


class Llama(nn.Module):
    block: LlamaBlock
    layers: int = 2

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH)(ids)
        for i in range(self.layers):
            x = self.block.clone(name=f"layer_{i}", parent=self)(x)
        norm = gemma_norm if self.block.gemma else rms_norm
        x = norm(x, "norm")
        return nn.Dense(VOCABULARY, use_bias=False, name="head")(x)


class ScanBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return LlamaBlock(kv_heads=2, name="block")(x), None


class ScannedLlama(nn.Module):
    """The same layers stacked along a leading axis, recomputed in the backward pass."""

    layers: int = 3

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = nn.Embed(VOCABULARY, WIDTH)(ids)
        stack = nn.scan(
            nn.remat(ScanBlock, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = stack(name="layers")(x, None)
        return nn.Dense(VOCABULARY, use_bias=False, name="head")(rms_norm(x, "norm"))


def llama_net(name: str, block: LlamaBlock, scales: int, **facts: object) -> Network:
    up = [(f"layer_{i}/up", f"layer_{i}/down") for i in range(2)]
    value = [(f"layer_{i}/v", f"layer_{i}/o") for i in range(2)]
    pairs = (*up, *(value if block.kv_heads == HEADS else ()))
    ids, shape = tokens(2, 5, vocabulary=VOCABULARY), (2, 5, VOCABULARY)
    net = Llama(block)
    return linen(name, net, ids, shape=shape, pairs=pairs, scales=scales, **facts)


@register
def llama(name: str) -> Network:
    norms, value, query = 2 * WIDTH, HEADS * DEPTH, HEADS * DEPTH // 2
    return llama_net(name, LlamaBlock(), 2 * (norms + value + query + HIDDEN) + WIDTH)


@register
def llama_gqa(name: str) -> Network:
    norms, value, query = 2 * WIDTH, 2 * DEPTH, 2 * DEPTH // 2
    scales = 2 * (norms + value + query + HIDDEN) + WIDTH
    note = "query heads of one key-value head share their scales"
    illegal = (("layer_0/v", "layer_0/o"),)
    return llama_net(name, LlamaBlock(kv_heads=2), scales, note=note, illegal=illegal)


@register
def llama_interleaved(name: str) -> Network:
    norms, value, query = 2 * WIDTH, HEADS * DEPTH, HEADS * DEPTH // 2
    scales = 2 * (norms + value + query + HIDDEN) + WIDTH
    return llama_net(name, LlamaBlock(interleaved=True), scales)


@register
def llama_qk_norm(name: str) -> Network:
    norms, value, query = 2 * WIDTH, 2 * DEPTH, DEPTH // 2
    scales = 2 * (norms + value + query + HIDDEN) + WIDTH
    note = "the norms pin the query and key kernels; their gains trade scale, shared by all heads"
    return llama_net(name, LlamaBlock(kv_heads=2, qk_norm=True), scales, note=note)


@register
def gemma(name: str) -> Network:
    value, query = 1 * DEPTH, 1 * DEPTH // 2
    note = "a gain of 1 + offset cannot be scaled by scaling the offset"
    return llama_net(
        name, LlamaBlock(kv_heads=1, gemma=True), 2 * (value + query + HIDDEN), note=note
    )


@register
def llama_scan_remat(name: str) -> Network:
    norms, value, query = 2 * WIDTH, 2 * DEPTH, 2 * DEPTH // 2
    scales = 3 * (norms + value + query + HIDDEN) + WIDTH
    ids, shape = tokens(2, 5, vocabulary=VOCABULARY), (2, 5, VOCABULARY)
    return linen(name, ScannedLlama(), ids, shape=shape, scales=scales)
