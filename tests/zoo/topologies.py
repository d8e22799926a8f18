"""The topologies that break layer-pattern tools silently, each in a legal and in an illegal form.

An illegal form carries in ``illegal`` the pair that looks right and changes the function; its
``scales`` still counts what a complete analysis may move.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.base import Chains, Network, image, linen, register

STEM: Chains = (("Conv_0", "Conv_1"),)
LATER: Chains = (("Conv_1", "Conv_2"),)


class Topology(nn.Module):
    """Convolutions and a head around ``body(conv, x)``, which is all that differs."""

    body: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        return self.body(late_conv, x)


def late_conv(width: int, **options: Any) -> Callable[[jax.Array], jax.Array]:
    """A convolution made at its first call, so that nested calls are named from the inside out."""
    made: list[nn.Conv] = []

    def call(x: jax.Array) -> jax.Array:
        if not made:
            made.append(nn.Conv(width, (3, 3), **options))
        return made[0](x)

    return call


def topology(name: str, body: Any, **facts: Any) -> Network:
    shape = facts.pop("shape", (1, 4, 4, 2))
    return linen(name, Topology(body), image(1, 4, 4, 3), shape=shape, **facts)


@register
def output_tap_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nn.relu(conv(5)(x))
        return hidden, conv(2)(hidden)

    shape = ((1, 4, 4, 5), (1, 4, 4, 2))
    return topology(name, body, shape=shape, illegal=STEM, scales=0)


@register
def output_tap_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden = nn.relu(conv(5)(x))
        return hidden, conv(2)(nn.relu(conv(4)(hidden)))

    shape = ((1, 4, 4, 5), (1, 4, 4, 2))
    return topology(name, body, shape=shape, pairs=LATER, illegal=STEM, scales=4)


@register
def applied_twice_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(5)(x))
        shared = conv(5)
        return conv(2)(nn.relu(shared(nn.relu(shared(x)))))

    pairs = ((("Conv_0", "Conv_1"), ("Conv_1", "Conv_2")),)
    return topology(name, body, pairs=pairs, illegal=(("Conv_0", "Conv_1", "Conv_2"),), scales=5)


@register
def applied_twice_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        shared, head = conv(5), conv(2)
        return head(nn.relu(shared(x))) + head(nn.relu(shared(0.5 * x)))

    return topology(name, body, pairs=STEM, scales=5)


@register
def scalar_add_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        return conv(2)(nn.relu(conv(5)(x)) + 1.0)

    return topology(name, body, illegal=STEM, scales=0)


@register
def scalar_multiply_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        return conv(2)(nn.relu(conv(5)(x)) * 0.7)

    return topology(name, body, pairs=STEM, scales=5)


@register
def constant_map_add_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        rows = jnp.arange(4, dtype=x.dtype).reshape((1, 4, 1, 1))
        return conv(2)(nn.relu(conv(5)(x)) + rows)

    return topology(name, body, illegal=STEM, scales=0)


@register
def input_residual_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        return conv(2)(nn.relu(x + conv(3)(x)))

    return topology(name, body, illegal=STEM, scales=0)


@register
def input_residual_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        return conv(2)(x + conv(3)(nn.relu(conv(5)(x))))

    return topology(name, body, pairs=STEM, illegal=LATER, scales=5)


@register
def square_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(5)(x))
        return conv(2)(x * x)

    note = "legal with power -2 on the consumer"
    return topology(name, body, illegal=STEM, scales=5, note=note)


@register
def product_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        return conv(2)(nn.relu(conv(5)(x)) * conv(5)(x))

    note = "each factor has its own scale; pairs can declare one of the two"
    return topology(name, body, pairs=(("Conv_0", "Conv_2"),), scales=5 + 5, note=note)


@register
def product_in_group_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(5)(x))
        y = x + nn.relu(conv(5)(x))
        return conv(2)(x * y)

    illegal = ((("Conv_0", "Conv_1"), ("Conv_1", "Conv_2")),)
    note = "legal with power -2 on the last consumer"
    return topology(name, body, illegal=illegal, scales=5, note=note)


@register
def product_in_group_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(5)(x))
        return conv(2)(x * nn.sigmoid(conv(5)(x)))

    pairs = (("Conv_0", ("Conv_1", "Conv_2")),)
    return topology(name, body, pairs=pairs, illegal=(("Conv_0", "Conv_2"),), scales=5)


@register
def permute_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        order = np.array([2, 0, 4, 1, 3])
        return conv(2)(nn.relu(conv(5)(x))[..., order])

    note = "legal with the permutation as the consumer's index"
    return topology(name, body, illegal=STEM, scales=5, note=note)


@register
def permute_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        order = np.array([2, 0, 4, 1, 3])
        return conv(2)(nn.relu(conv(5)(x))[..., order][..., np.argsort(order)])

    return topology(name, body, pairs=STEM, scales=5)


@register
def flatten_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = jnp.transpose(nn.relu(conv(4)(x)), (0, 3, 1, 2))
        return nn.Dense(2)(x.reshape((x.shape[0], -1)))

    note = "legal when the consumer's index runs over the channel first"
    illegal = (("Conv_0", "Dense_0"),)
    return topology(name, body, shape=(1, 2), illegal=illegal, scales=4, note=note)


@register
def flatten_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(4)(x))
        return nn.Dense(2)(x.reshape((x.shape[0], -1)))

    return topology(name, body, shape=(1, 2), pairs=(("Conv_0", "Dense_0"),), scales=4)


@register
def wrong_axis_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        return nn.Dense(2)(nn.relu(conv(4)(x)).mean(axis=(1, 3)))

    note = "the mean leaves the width, which is as long as the channels: one scale for all"
    illegal = (("Conv_0", "Dense_0"),)
    return topology(name, body, shape=(1, 2), illegal=illegal, scales=1, note=note)


@register
def constant_pad_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = jnp.pad(nn.relu(conv(5)(x)), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=1.0)
        return conv(2, padding="VALID")(x)

    return topology(name, body, illegal=STEM, scales=0)


@register
def edge_pad_legal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = jnp.pad(nn.relu(conv(5)(x)), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        return conv(2, padding="CIRCULAR")(x)[:, 1:-1, 1:-1]

    return topology(name, body, pairs=STEM, scales=5)


@register
def clip_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        return conv(2)(jnp.clip(conv(5)(x), 0.0, 2.0))

    return topology(name, body, illegal=STEM, scales=0)


@register
def skipped_consumer_illegal(name: str) -> Network:
    def body(conv: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(conv(5)(x))
        return conv(2)(x) + conv(2)(x)

    pairs, illegal = (("Conv_0", ("Conv_1", "Conv_2")),), STEM
    return topology(name, body, pairs=pairs, illegal=illegal, scales=5)
