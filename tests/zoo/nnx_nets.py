"""Feed-forward networks in NNX: the twins of the Linen ones, same topology and widths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.base import Network, avg_pool, image, nnx_net, register
from zoo.convnets import shuffle


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.Sequential(
            nnx.Linear(7, 32, rngs=rngs),
            nnx.relu,
            nnx.Linear(32, 24, rngs=rngs),
            nnx.relu,
            nnx.Linear(24, 5, rngs=rngs),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layers(x)


class VGG(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 12, (3, 3), rngs=rngs)
        self.hidden = nnx.Linear(2 * 2 * 12, 16, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.relu(self.hidden(x.reshape((x.shape[0], -1))))
        return self.head(x)


class Conv1D(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 6, (5,), strides=2, rngs=rngs)
        self.depthwise = nnx.Conv(6, 6, (3,), feature_group_count=6, rngs=rngs)
        self.pointwise = nnx.Conv(6, 8, (1,), rngs=rngs)
        self.dilated = nnx.Conv(8, 10, (3,), kernel_dilation=2, rngs=rngs)
        self.head = nnx.Linear(10, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.stem(x))
        x = nnx.relu(self.depthwise(x))
        x = nnx.relu(self.pointwise(x))
        x = nnx.relu(self.dilated(avg_pool(x, (2,), 2)))
        return self.head(x.mean(axis=1))


class Double(nnx.Module):
    def __init__(self, features: int, width: int, rngs: nnx.Rngs):
        self.first = nnx.Conv(features, width, (3, 3), rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.second(nnx.relu(self.first(x))))


class UNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.down1 = Double(3, 4, rngs)
        self.down2 = Double(4, 6, rngs)
        self.bottom = Double(6, 8, rngs)
        self.up2 = nnx.ConvTranspose(8, 6, (2, 2), strides=(2, 2), rngs=rngs)
        self.merge2 = Double(12, 6, rngs)
        self.up1 = nnx.ConvTranspose(6, 4, (2, 2), strides=(2, 2), rngs=rngs)
        self.merge1 = Double(8, 4, rngs)
        self.head = nnx.Conv(4, 2, (1, 1), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        fine = self.down1(x)
        coarse = self.down2(nnx.max_pool(fine, (2, 2), (2, 2)))
        x = self.bottom(nnx.max_pool(coarse, (2, 2), (2, 2)))
        x = self.merge2(jnp.concatenate([self.up2(x), coarse], axis=-1))
        x = self.merge1(jnp.concatenate([self.up1(x), fine], axis=-1))
        return self.head(x)


class ShuffleUnit(nnx.Module):
    def __init__(self, inputs: int, features: int, stride: int, rngs: nnx.Rngs):
        out = features if stride == 1 else features - inputs
        self.stride = stride
        self.reduce = nnx.Conv(inputs, 8, (1, 1), feature_group_count=2, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), strides=stride, feature_group_count=8, rngs=rngs)
        self.expand = nnx.Conv(8, out, (1, 1), feature_group_count=2, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = shuffle(nnx.relu(self.reduce(x)), groups=2)
        y = self.expand(self.depthwise(y))
        if self.stride == 1:
            return nnx.relu(x + y)
        return nnx.relu(jnp.concatenate([avg_pool(x, (3, 3), 2), y], axis=-1))


class ShuffleNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 6, (3, 3), strides=2, rngs=rngs)
        self.units = nnx.Sequential(ShuffleUnit(6, 12, 2, rngs), ShuffleUnit(12, 12, 1, rngs))
        self.head = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.units(nnx.relu(self.stem(x)))
        return self.head(x.mean(axis=(1, 2)))


class Residual(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up = nnx.Linear(6, 5, rngs=rngs)
        self.down = nnx.Linear(5, 6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(x + self.down(nnx.relu(self.up(x))))


class ScanStack(nnx.Module):
    """Blocks made by nnx.vmap, run by nnx.scan under remat; the scan also returns their state."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 6, rngs=rngs)
        self.blocks = nnx.split_rngs(splits=3)(nnx.vmap(Residual))(rngs)
        self.head = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def forward(x: jax.Array, block: Residual) -> jax.Array:
            return nnx.remat(Residual.__call__)(block, x)

        return self.head(forward(nnx.relu(self.first(x)), self.blocks))


@register
def mlp_nnx(name: str) -> Network:
    pairs = (("layers/layers/0", "layers/layers/2", "layers/layers/4"),)
    return nnx_net(name, MLP, image(4, 7), shape=(4, 5), pairs=pairs, scales=32 + 24)


@register
def vgg_nnx(name: str) -> Network:
    pairs, scales = (("conv1", "conv2", "hidden", "head"),), 8 + 12 + 16
    return nnx_net(name, VGG, image(2, 8, 8, 3), shape=(2, 5), pairs=pairs, scales=scales)


@register
def conv1d_nnx(name: str) -> Network:
    pairs = (("stem", "depthwise", "pointwise", "dilated", "head"),)
    scales = 6 + 6 + 8 + 10
    return nnx_net(name, Conv1D, image(2, 16, 3), shape=(2, 4), pairs=pairs, scales=scales)


@register
def unet_nnx(name: str) -> Network:
    pairs = (
        ("down1/first", "down1/second"),
        ("down2/first", "down2/second"),
        ("bottom/first", "bottom/second", "up2"),
        ("merge2/first", "merge2/second", "up1"),
        ("merge1/first", "merge1/second", "head"),
    )
    each = 2 * (4 + 6 + 8) + (6 + 6 + 6) + (4 + 4 + 4)
    inputs = image(1, 8, 8, 3)
    return nnx_net(name, UNet, inputs, shape=(1, 8, 8, 2), pairs=pairs, scales=each)


@register
def shufflenet_nnx(name: str) -> Network:
    units = ("units/layers/0", "units/layers/1")
    pairs = tuple((f"{unit}/depthwise", f"{unit}/expand") for unit in units)
    each = 6 + (8 + 8 + 6) + (8 + 8)
    inputs = image(1, 8, 8, 3)
    return nnx_net(name, ShuffleNet, inputs, shape=(1, 5), pairs=pairs, scales=each)


@register
def scan_remat_stack_nnx(name: str) -> Network:
    return nnx_net(name, ScanStack, image(4, 4), shape=(4, 3), scales=3 * 5 + 6)
