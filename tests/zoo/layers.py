"""One network for each kind of layer that has its own kernel layout or its own nonlinearity."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, image, linen, register


class LeakyPReLU(nn.Module):
    """Every activation that is positively homogeneous and not ReLU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.leaky_relu(nn.Conv(5, (3, 3))(x), 0.1)
        x = nn.PReLU()(nn.Conv(6, (3, 3))(x))
        x = jnp.abs(nn.Conv(4, (1, 1))(x))
        # relu(x - 0.1 x) + 0.1 x: leaky ReLU as some exporters write it.
        x = nn.Conv(5, (1, 1))(x)
        x = nn.relu(x - 0.1 * x) + 0.1 * x
        return nn.Dense(3)(x.mean(axis=(1, 2)))


class ChannelPReLU(nn.Module):
    """One slope a channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(6)(x)
        slope = self.param("slope", nn.initializers.constant(0.25), (6,))
        x = jnp.where(x >= 0, x, slope[None] * x)
        return nn.Dense(3)(x)


class Conv3D(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (2, 3, 3))(x))
        x = nn.max_pool(x, (1, 2, 2), (1, 2, 2))
        x = nn.relu(nn.Conv(5, (3, 1, 1))(x))
        return nn.Dense(3)(x.mean(axis=(1, 2, 3)))


class Multiplier(nn.Module):
    """A depthwise convolution with two outputs a channel: out index = 2 * channel + j."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=4)(x))
        x = nn.relu(nn.Conv(5, (1, 1))(x))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


class Grouped(nn.Module):
    """Two grouped convolutions in a row, the groups of different size."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=2)(x))
        x = nn.relu(nn.Conv(9, (1, 1), feature_group_count=3)(x))
        return nn.Dense(3)(x.mean(axis=(1, 2)))


class Transposed(nn.Module):
    """Up-convolutions in both kernel layouts."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.relu(nn.ConvTranspose(5, (3, 3), strides=(2, 2))(x))
        x = nn.relu(nn.ConvTranspose(6, (2, 2), strides=(2, 2), transpose_kernel=True)(x))
        x = nn.relu(nn.ConvTranspose(6, (3, 3), transpose_kernel=True)(x))
        return nn.Conv(2, (3, 3))(x)


class Local(nn.Module):
    """A convolution with its own weights at every position."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3,))(x))
        x = nn.relu(nn.ConvLocal(3, (3,))(x))
        return nn.Dense(2)(x.reshape((x.shape[0], -1)))


class EinsumNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Einsum((5, 2, 3), "td,dhk->thk")(x))
        return nn.Einsum((2, 3, 4), "thk,hko->to")(x)


class GroupNormNet(nn.Module):
    """GroupNorm computes its statistics from the data: it pins the convolution before it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(6, (3, 3))(x)
        norm = nn.GroupNorm(2, param_dtype=x.dtype, force_float32_reductions=False)
        x = nn.relu(norm(x))
        return nn.Dense(3)(nn.relu(nn.Conv(5, (3, 3))(x)).mean(axis=(1, 2)))


@register
def leaky_prelu(name: str) -> Network:
    pairs = (("Conv_0", "Conv_1", "PReLU_0", "Conv_2", "Conv_3", "Dense_0"),)
    scales, inputs = 5 + 6 + 4 + 5, image(1, 6, 6, 3)
    return linen(name, LeakyPReLU(), inputs, shape=(1, 3), pairs=pairs, scales=scales)


@register
def prelu_channelwise(name: str) -> Network:
    pairs = (("Dense_0", "Dense_1"),)
    return linen(name, ChannelPReLU(), image(4, 4), shape=(4, 3), pairs=pairs, scales=6)


@register
def conv3d(name: str) -> Network:
    pairs, inputs = (("Conv_0", "Conv_1", "Dense_0"),), image(1, 3, 4, 4, 2)
    return linen(name, Conv3D(), inputs, shape=(1, 3), pairs=pairs, scales=4 + 5)


@register
def depthwise_multiplier(name: str) -> Network:
    pairs, inputs = (("Conv_0", "Conv_1", "Conv_2", "Dense_0"),), image(1, 5, 5, 3)
    return linen(name, Multiplier(), inputs, shape=(1, 3), pairs=pairs, scales=4 + 8 + 5)


@register
def grouped(name: str) -> Network:
    pairs, inputs = (("Conv_0", "Conv_1", "Conv_2", "Dense_0"),), image(1, 5, 5, 3)
    return linen(name, Grouped(), inputs, shape=(1, 3), pairs=pairs, scales=6 + 6 + 9)


@register
def transposed(name: str) -> Network:
    square = "ConvTranspose_2[out=-2, in=-1]"
    layers = ("Conv_0", "ConvTranspose_0", "ConvTranspose_1", square, "Conv_1")
    scales, inputs = 4 + 5 + 6 + 6, image(1, 3, 3, 2)
    shape = (1, 12, 12, 2)
    return linen(name, Transposed(), inputs, shape=shape, pairs=(layers,), scales=scales)


@register
def conv_local(name: str) -> Network:
    note = "a local convolution has its own scale at every position"
    inputs, scales = image(2, 6, 3), 4 + 6 * 3
    return linen(name, Local(), inputs, shape=(2, 2), scales=scales, note=note)


@register
def einsum(name: str) -> Network:
    return linen(name, EinsumNet(), image(4, 5), shape=(4, 4), scales=6)


@register
def group_norm(name: str) -> Network:
    inputs, pairs = image(1, 5, 5, 3), (("Conv_1", "Dense_0"),)
    return linen(name, GroupNormNet(), inputs, shape=(1, 3), pairs=pairs, scales=6 + 5)
