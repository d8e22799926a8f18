"""Large networks as functions of shapes: no weight is ever allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Shapes = Any
Network = tuple[Callable[..., Any], Shapes, jax.ShapeDtypeStruct]


class Bottleneck(nn.Module):
    """ResNet's bottleneck block with live BatchNorm."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.normed(x, self.features, 1, 1))
        y = nn.relu(self.normed(y, self.features, 3, self.stride))
        y = self.normed(y, 4 * self.features, 1, 1)
        if x.shape != y.shape:
            x = self.normed(x, 4 * self.features, 1, self.stride)
        return nn.relu(x + y)

    def normed(self, x: jax.Array, features: int, kernel: int, stride: int) -> jax.Array:
        x = nn.Conv(features, (kernel, kernel), strides=stride, use_bias=False)(x)
        return nn.BatchNorm(use_running_average=True)(x)


class ResNet(nn.Module):
    """ResNet with bottleneck blocks."""

    stages: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(64, (7, 7), strides=2, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                x = Bottleneck(64 * 2**stage, 2 if stage and not block else 1)(x)
        return nn.Dense(1000)(x.mean(axis=(1, 2)))


class InvertedResidual(nn.Module):
    """MobileNetV2's block with live BatchNorm."""

    expansion: int
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y, width = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = nn.relu6(self.normed(y, width, 1, 1, 1))
        y = nn.relu6(self.normed(y, width, 3, self.stride, width))
        y = self.normed(y, self.channels, 1, 1, 1)
        return x + y if x.shape == y.shape else y

    def normed(self, x: jax.Array, features: int, size: int, stride: int, split: int) -> jax.Array:
        x = nn.Conv(
            features, (size, size), strides=stride, feature_group_count=split, use_bias=False
        )(x)
        return nn.BatchNorm(use_running_average=True)(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1 (Sandler et al. 2018, table 2)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(32, (3, 3), strides=2, use_bias=False)(x)
        x = nn.relu6(nn.BatchNorm(use_running_average=True)(x))
        for expansion, channels, blocks, stride in MOBILE_STAGES:
            for block in range(blocks):
                x = InvertedResidual(expansion, channels, 1 if block else stride)(x)
        x = nn.Conv(1280, (1, 1), use_bias=False)(x)
        x = nn.relu6(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(1000)(x.mean(axis=(1, 2)))


MOBILE_STAGES = (
    *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
    *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
)


def linen(model: nn.Module) -> Network:
    """A Flax network of ImageNet's images."""
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    return model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x


def resnet(*stages: int) -> Network:
    """ResNet-50 is (3, 4, 6, 3)."""
    return linen(ResNet(stages))


def shapes(tree: Any) -> Shapes:
    """A tree of shapes as a tree of abstract arrays."""
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), tree, is_leaf=is_shape)


def layer_norm(p: Any, x: jax.Array) -> jax.Array:
    """Normalises, scales and shifts."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def rms_norm(scale: jax.Array, x: jax.Array) -> jax.Array:
    """Normalises and scales."""
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * scale


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = True) -> jax.Array:
    """Attention; heads on axis -2, several query heads for one key head."""
    q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
    logits = jnp.einsum("btkgd,bskd->bkgts", q, k) / q.shape[-1] ** 0.5
    if causal:
        mask = jnp.tril(jnp.ones(logits.shape[-2:], bool))
        logits = jnp.where(mask, logits, -jnp.inf)
    weights = jax.nn.softmax(logits)
    out = jnp.einsum("bkgts,bskd->btkgd", weights, v)
    return out.reshape(*out.shape[:2], -1, out.shape[-1])


def rope(x: jax.Array) -> jax.Array:
    """Rotates the two halves of every head."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] / 1e4 ** (jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def gpt_block(p: Any, x: jax.Array, causal: bool = True) -> jax.Array:
    """GPT-2's block: LayerNorm, fused q/k/v, GELU."""
    qkv = jnp.einsum("btd,dchk->cbthk", layer_norm(p["ln1"], x), p["qkv"])
    q, k, v = qkv + p["qkv_bias"][:, None, None]
    x = x + jnp.einsum("bthk,hkd->btd", attend(q, k, v, causal), p["out"]) + p["out_bias"]
    h = jax.nn.gelu(layer_norm(p["ln2"], x) @ p["up"] + p["up_bias"])
    return x + h @ p["down"] + p["down_bias"]


def gpt_shapes(width: int, heads: int) -> Any:
    """The shapes of a block."""
    d, h, k = width, heads, width // heads
    norm = {"scale": (d,), "bias": (d,)}
    return {
        **{"ln1": norm, "qkv": (d, 3, h, k), "qkv_bias": (3, h, k), "out": (h, k, d)},
        **{"out_bias": (d,), "ln2": norm, "up": (d, 4 * d), "up_bias": (4 * d,)},
        **{"down": (4 * d, d), "down_bias": (d,)},
    }


def vit(layers: int, width: int, heads: int) -> Network:
    """ViT with patches of 16x16; the mean of the tokens is classified."""
    d, norm, block = width, {"scale": (width,), "bias": (width,)}, gpt_shapes(width, heads)
    tree = {"patch": (16, 16, 3, d), "patch_bias": (d,), "position": (196, d)}
    tree |= {"blocks": [block] * layers, "ln": norm, "head": (d, 1000), "head_bias": (1000,)}

    def fn(p: Any, images: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            images, p["patch"], (16, 16), "VALID", dimension_numbers=layout
        )
        x = (x + p["patch_bias"]).reshape(x.shape[0], -1, d) + p["position"]
        for block in p["blocks"]:
            x = gpt_block(block, x, causal=False)
        return layer_norm(p["ln"], x).mean(1) @ p["head"] + p["head_bias"]

    return fn, shapes(tree), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)


def gpt(layers: int, width: int, heads: int) -> Network:
    """GPT-2 with tied embeddings."""
    d, norm, block = width, {"scale": (width,), "bias": (width,)}, gpt_shapes(width, heads)
    tree = {"wte": (50257, d), "wpe": (1024, d), "blocks": [block] * layers, "ln": norm}

    def fn(p: Any, ids: jax.Array) -> jax.Array:
        x = p["wte"][ids] + p["wpe"][: ids.shape[1]]
        for block in p["blocks"]:
            x = gpt_block(block, x)
        return layer_norm(p["ln"], x) @ p["wte"].T

    return fn, shapes(tree), jax.ShapeDtypeStruct((1, 16), jnp.int32)


def llama_block(p: Any, x: jax.Array) -> jax.Array:
    """LLaMA's block: RMSNorm, RoPE, grouped queries, SwiGLU."""
    h = rms_norm(p["norm1"], x)
    q, k, v = (jnp.einsum("btd,dhk->bthk", h, p[name]) for name in "qkv")
    x = x + jnp.einsum("bthk,hkd->btd", attend(rope(q), rope(k), v), p["o"])
    h = rms_norm(p["norm2"], x)
    return x + (jax.nn.silu(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def llama(
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    scanned: bool = False,
    vocabulary: int = 32000,
) -> Network:
    """LLaMA; `scanned` stacks the layers and scans over them."""
    d, k = width, width // heads
    block = {
        **{"norm1": (d,), "q": (d, heads, k), "k": (d, kv_heads, k), "v": (d, kv_heads, k)},
        **{"o": (heads, k, d), "norm2": (d,), "gate": (d, hidden), "up": (d, hidden)},
        **{"down": (hidden, d)},
    }
    stack = {name: (layers, *shape) for name, shape in block.items()}
    blocks = stack if scanned else [block] * layers
    n = vocabulary
    tree = {"embed": (n, d), "blocks": blocks, "norm": (d,), "head": (d, n)}

    def fn(p: Any, ids: jax.Array) -> jax.Array:
        x = p["embed"][ids]
        if scanned:
            x, _ = jax.lax.scan(lambda x, q: (llama_block(q, x), None), x, p["blocks"])
        else:
            for block in p["blocks"]:
                x = llama_block(block, x)
        return rms_norm(p["norm"], x) @ p["head"]

    return fn, shapes(tree), jax.ShapeDtypeStruct((1, 16), jnp.int32)


NETWORKS: dict[str, Callable[[], Network]] = {
    "mobilenet_v2": lambda: linen(MobileNetV2()),
    "resnet50": lambda: resnet(3, 4, 6, 3),
    "resnet152": lambda: resnet(3, 8, 36, 3),
    "vit_b16": lambda: vit(12, 768, 12),
    "gpt2": lambda: gpt(12, 768, 12),
    "gpt2_xl": lambda: gpt(48, 1600, 25),
    "llama_7b": lambda: llama(32, 4096, 32, 32, 11008),
    "llama_70b": lambda: llama(80, 8192, 64, 8, 28672),
    "llama_70b_scanned": lambda: llama(80, 8192, 64, 8, 28672, scanned=True),
}
