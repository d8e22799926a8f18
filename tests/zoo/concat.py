"""Networks whose channels are concatenated, split and shuffled (Linen)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, avg_pool, image, linen, register
from zoo.convnets import shuffle


class DenseNet(nn.Module):
    """Two dense blocks of three layers with a transition; every layer reads all before it."""

    growth: int = 3

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = self.block(x)
        x = avg_pool(nn.relu(nn.Conv(6, (1, 1))(x)), (2, 2), 2)
        x = self.block(x)
        return nn.Dense(4)(x.mean(axis=(1, 2)))

    def block(self, x: jax.Array) -> jax.Array:
        for _ in range(3):
            y = nn.relu(nn.Conv(5, (1, 1))(x))
            x = jnp.concatenate([x, nn.relu(nn.Conv(self.growth, (3, 3))(y))], axis=-1)
        return x


class PreActivationDenseNet(nn.Module):
    """The published order norm, ReLU, conv: one tensor meets a different norm in each layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (3, 3))(x)
        for _ in range(3):
            y = nn.relu(nn.BatchNorm(use_running_average=True)(x))
            x = jnp.concatenate([x, nn.Conv(3, (3, 3), use_bias=False)(y)], axis=-1)
        x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(4)(x.mean(axis=(1, 2)))


class Inception(nn.Module):
    """Four parallel branches, one of them pooling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        one = nn.relu(nn.Conv(4, (1, 1))(x))
        three = nn.relu(nn.Conv(6, (3, 3))(nn.relu(nn.Conv(4, (1, 1))(x))))
        five = nn.relu(nn.Conv(2, (5, 5))(nn.relu(nn.Conv(2, (1, 1))(x))))
        pool = nn.relu(nn.Conv(3, (1, 1))(nn.max_pool(x, (3, 3), (1, 1), padding="SAME")))
        x = jnp.concatenate([one, three, five, pool], axis=-1)
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        return nn.Dense(4)(x.mean(axis=(1, 2)))


class ShuffleNetV2Unit(nn.Module):
    """Half of the channels pass by; concatenation and shuffle mix the halves."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        keep, y = jnp.split(x, 2, axis=-1)
        width = y.shape[-1]
        y = nn.relu(nn.Conv(width, (1, 1))(y))
        y = nn.Conv(width, (3, 3), feature_group_count=width)(y)
        y = nn.relu(nn.Conv(width, (1, 1))(y))
        return shuffle(jnp.concatenate([keep, y], axis=-1), groups=2)


class ShuffleNetV2(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3), strides=2)(x))
        for _ in range(3):
            x = ShuffleNetV2Unit()(x)
        return nn.Dense(4)(x.mean(axis=(1, 2)))


@register
def densenet(name: str) -> Network:
    pairs = tuple((f"Conv_{i}", f"Conv_{i + 1}") for i in (1, 3, 5, 8, 10, 12))
    scales = 4 + 3 * (5 + 3) + 6 + 3 * (5 + 3)
    net, inputs = DenseNet(), image(1, 8, 8, 3)
    return linen(name, net, inputs, shape=(1, 4), pairs=pairs, scales=scales)


@register
def densenet_preactivation(name: str) -> Network:
    before = 4 + 3 * 3
    after = 4 + 7 + 10 + 13
    net, inputs = PreActivationDenseNet(), image(1, 8, 8, 3)
    return linen(name, net, inputs, shape=(1, 4), scales=before + after)


@register
def inception(name: str) -> Network:
    first = ("Conv_1", "Conv_3", "Conv_5", "Conv_6")
    pairs = (("Conv_0", first), ("Conv_3", "Conv_2"), ("Conv_5", "Conv_4"), ("Conv_7", "Dense_0"))
    scales = 5 + 4 + (4 + 6) + (2 + 2) + 3 + 6
    net, inputs = Inception(), image(1, 8, 8, 3)
    return linen(name, net, inputs, shape=(1, 4), pairs=pairs, scales=scales)


@register
def shufflenetv2(name: str) -> Network:
    units = [f"ShuffleNetV2Unit_{i}" for i in range(3)]
    pairs = tuple((f"{unit}/Conv_0", f"{unit}/Conv_1", f"{unit}/Conv_2") for unit in units)
    scales = 8 + 3 * (4 + 4 + 4)
    net, inputs = ShuffleNetV2(), image(1, 8, 8, 3)
    return linen(name, net, inputs, shape=(1, 4), pairs=pairs, scales=scales)
