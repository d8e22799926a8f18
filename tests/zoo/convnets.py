"""Feed-forward networks in Linen: dense, VGG, one-dimensional, U-Net, grouped with shuffle."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, avg_pool, image, linen, register


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(32)(x))
        x = nn.relu(nn.Dense(24)(x))
        return nn.Dense(5)(x)


class VGG(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(12, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(5)(x)


class Conv1D(nn.Module):
    """Keyword-spotting net: strided, depthwise, pointwise and dilated convolutions over time."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (5,), strides=2)(x))
        x = nn.relu(nn.Conv(6, (3,), feature_group_count=6)(x))
        x = nn.relu(nn.Conv(8, (1,))(x))
        x = avg_pool(x, (2,), 2)
        x = nn.relu(nn.Conv(10, (3,), kernel_dilation=2)(x))
        return nn.Dense(4)(x.mean(axis=1))


class UNet(nn.Module):
    """Two levels down and up; every skip is a concatenation."""

    widths: tuple[int, ...] = (4, 6, 8)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        skips = []
        for width in self.widths[:-1]:
            x = self.double(x, width)
            skips.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = self.double(x, self.widths[-1])
        for width, skip in zip(self.widths[-2::-1], reversed(skips), strict=True):
            x = nn.ConvTranspose(width, (2, 2), strides=(2, 2))(x)
            x = self.double(jnp.concatenate([x, skip], axis=-1), width)
        return nn.Conv(2, (1, 1))(x)

    def double(self, x: jax.Array, width: int) -> jax.Array:
        x = nn.relu(nn.Conv(width, (3, 3))(x))
        return nn.relu(nn.Conv(width, (3, 3))(x))


class ShuffleUnit(nn.Module):
    """ShuffleNet v1 unit: grouped pointwise, channel shuffle, depthwise, grouped pointwise."""

    features: int
    groups: int = 2
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.features if self.stride == 1 else self.features - x.shape[-1]
        y = nn.relu(nn.Conv(8, (1, 1), feature_group_count=self.groups)(x))
        y = shuffle(y, self.groups)
        y = nn.Conv(8, (3, 3), strides=self.stride, feature_group_count=8)(y)
        y = nn.Conv(out, (1, 1), feature_group_count=self.groups)(y)
        if self.stride == 1:
            return nn.relu(x + y)
        x = avg_pool(x, (3, 3), 2)
        return nn.relu(jnp.concatenate([x, y], axis=-1))


class ShuffleNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        x = ShuffleUnit(12, stride=2)(x)
        x = ShuffleUnit(12)(x)
        return nn.Dense(5)(x.mean(axis=(1, 2)))


def shuffle(x: jax.Array, groups: int) -> jax.Array:
    """Interleaves the channel groups."""
    x = x.reshape((*x.shape[:-1], groups, x.shape[-1] // groups))
    return jnp.swapaxes(x, -1, -2).reshape((*x.shape[:-2], -1))


@register
def mlp(name: str) -> Network:
    pairs = (("Dense_0", "Dense_1", "Dense_2"),)
    return linen(name, MLP(), image(4, 7), shape=(4, 5), pairs=pairs, scales=32 + 24)


@register
def vgg(name: str) -> Network:
    pairs = (("Conv_0", "Conv_1", "Dense_0", "Dense_1"),)
    return linen(name, VGG(), image(2, 8, 8, 3), shape=(2, 5), pairs=pairs, scales=8 + 12 + 16)


@register
def conv1d(name: str) -> Network:
    pairs = (("Conv_0", "Conv_1", "Conv_2", "Conv_3", "Dense_0"),)
    return linen(name, Conv1D(), image(2, 16, 3), shape=(2, 4), pairs=pairs, scales=6 + 6 + 8 + 10)


@register
def unet(name: str) -> Network:
    pairs = (
        ("Conv_0", "Conv_1"),
        ("Conv_2", "Conv_3"),
        ("Conv_4", "Conv_5", "ConvTranspose_0"),
        ("Conv_6", "Conv_7", "ConvTranspose_1"),
        ("Conv_8", "Conv_9", "Conv_10"),
    )
    each = 2 * (4 + 6 + 8) + (6 + 6 + 6) + (4 + 4 + 4)
    return linen(name, UNet(), image(1, 8, 8, 3), shape=(1, 8, 8, 2), pairs=pairs, scales=each)


@register
def shufflenet(name: str) -> Network:
    units = ("ShuffleUnit_0", "ShuffleUnit_1")
    pairs = tuple((f"{unit}/Conv_1", f"{unit}/Conv_2") for unit in units)
    each = 6 + (8 + 8 + 6) + (8 + 8)
    return linen(name, ShuffleNet(), image(1, 8, 8, 3), shape=(1, 5), pairs=pairs, scales=each)
