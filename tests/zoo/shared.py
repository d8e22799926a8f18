"""Networks that use one leaf more than once: shared layers, siamese, tied, lifted transforms."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, image, linen, raw, register


class Siamese(nn.Module):
    """Two inputs, one encoder, the embeddings compared by difference."""

    @nn.compact
    def __call__(self, a: jax.Array, b: jax.Array) -> jax.Array:
        encoder = nn.Sequential([nn.Dense(6), nn.relu, nn.Dense(5), nn.relu])
        return nn.Dense(3)(jnp.abs(encoder(a) - encoder(b)))


class Looped(nn.Module):
    """One convolution applied three times in a row, as in a weight-shared refinement net."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(5, (3, 3), name="stem")(x))
        shared = nn.Conv(5, (3, 3), name="shared")
        for _ in range(3):
            x = nn.relu(shared(x))
        return nn.Dense(3, name="head")(x.mean(axis=(1, 2)))


def siamese_product_fn(params: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    """Embeddings compared by product: the consumer sees the square of the scale."""
    u, v = (nn.relu(x @ params["w"] + params["b"][None]) for x in (a, b))
    return (u * v) @ params["head"]


def homogeneous_fn(params: Any, x: jax.Array) -> jax.Array:
    """A shared square matrix without bias: only its overall size can trade with the next one's."""
    for _ in range(3):
        x = nn.relu(x @ params["w"])
    return nn.relu(x @ params["up"]) @ params["head"]


class Layer(nn.Module):
    """A residual MLP block in the (carry, output) form that nn.scan asks for."""

    hidden: int = 5

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = nn.relu(nn.Dense(self.hidden)(x))
        return nn.relu(x + nn.Dense(x.shape[-1])(y)), None


class ScanStack(nn.Module):
    layers: int = 3
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(6)(x))
        body = nn.remat(Layer, prevent_cse=False) if self.remat else Layer
        stack = nn.scan(
            body,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = stack(name="stack")(x, None)
        return nn.Dense(3)(x)


class RematStack(nn.Module):
    """The same blocks unrolled, each under remat."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(6)(x))
        for i in range(3):
            x, _ = nn.remat(Layer)(name=f"layer_{i}")(x, None)
        return nn.Dense(3)(x)


class Member(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(nn.relu(nn.Dense(5)(nn.relu(nn.Dense(6)(x)))))


class Ensemble(nn.Module):
    """Four networks side by side, averaged."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        members = nn.vmap(
            Member,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=None,
            axis_size=4,
        )
        return members(name="members")(x).mean(axis=0)


@register
def siamese(name: str) -> Network:
    inputs = image(2, 4), image(2, 4, seed=1)
    pairs = (("Dense_0", "Dense_1", "Dense_2"),)
    return linen(name, Siamese(), *inputs, shape=(2, 3), pairs=pairs, scales=6 + 5)


@register
def siamese_product(name: str) -> Network:
    inputs, leaves = (image(2, 4), image(2, 4, seed=1)), {"w": (4, 6), "b": (6,), "head": (6, 3)}
    note = "the head scales with power -2"
    return raw(name, siamese_product_fn, leaves, *inputs, shape=(2, 3), scales=6, note=note)


@register
def weight_shared(name: str) -> Network:
    pairs = ((("stem", "shared"), ("shared", "head")),)
    inputs, illegal = image(1, 5, 5, 3), (("stem", "shared"),)
    return linen(name, Looped(), inputs, shape=(1, 3), pairs=pairs, illegal=illegal, scales=5)


@register
def weight_shared_homogeneous(name: str) -> Network:
    leaves = {"w": (5, 5), "up": (5, 4), "head": (4, 3)}
    note = "w scales by t, up by t**-3"
    return raw(name, homogeneous_fn, leaves, image(4, 5), shape=(4, 3), scales=1 + 4, note=note)


@register
def scan_stack(name: str) -> Network:
    scales = 3 * 5 + 6
    return linen(name, ScanStack(), image(4, 4), shape=(4, 3), scales=scales)


@register
def scan_remat_stack(name: str) -> Network:
    scales = 3 * 5 + 6
    return linen(name, ScanStack(remat=True), image(4, 4), shape=(4, 3), scales=scales)


@register
def remat_stack(name: str) -> Network:
    layers = [f"layer_{i}" for i in range(3)]
    inner = tuple((f"{layer}/Dense_0", f"{layer}/Dense_1") for layer in layers)
    producers = ("Dense_0", *(f"{layer}/Dense_1" for layer in layers))
    consumers = (*(f"{layer}/Dense_0" for layer in layers), "Dense_1")
    pairs, scales = (*inner, (producers, consumers)), 3 * 5 + 6
    return linen(name, RematStack(), image(4, 4), shape=(4, 3), pairs=pairs, scales=scales)


@register
def vmap_ensemble(name: str) -> Network:
    scales = 4 * (6 + 5)
    return linen(name, Ensemble(), image(4, 4), shape=(4, 3), scales=scales)
