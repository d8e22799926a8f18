"""Networks with gates and smooth activations (Linen): squeeze-excite, MobileNets, ConvNeXt."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from zoo.base import Network, image, layer_norm, linen, register
from zoo.residual import ConvNorm

Act = Callable[[jax.Array], jax.Array]


class SqueezeExcite(nn.Module):
    hidden: int
    act: Act = nn.relu
    gate: Act = nn.sigmoid

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.mean(axis=(1, 2), keepdims=True)
        y = self.act(nn.Dense(self.hidden)(y))
        return x * self.gate(nn.Dense(x.shape[-1])(y))


class SENet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(6, (3, 3))(x))
        x = SqueezeExcite(3)(x)
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        return nn.Dense(4)(x.mean(axis=(1, 2)))


class MobileNetV1(nn.Module):
    act: Act = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.act(ConvNorm(4, 3, 2)(x))
        for features, stride in ((5, 1), (6, 2), (6, 1), (7, 2), (7, 1)):
            x = self.act(ConvNorm(x.shape[-1], 3, stride, x.shape[-1])(x))
            x = self.act(ConvNorm(features, 1)(x))
        return nn.Dense(5)(x.mean(axis=(1, 2)))


class GatedBottleneck(nn.Module):
    """Expand, depthwise, squeeze-excite, linear projection: MobileNetV3 and EfficientNet."""

    features: int
    stride: int
    act: Act
    gate: Act
    squeeze: Act = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = 2 * x.shape[-1]
        y = self.act(ConvNorm(hidden, 1)(x))
        y = self.act(ConvNorm(hidden, 3, self.stride, hidden)(y))
        y = SqueezeExcite(2, self.squeeze, self.gate)(y)
        y = ConvNorm(self.features, 1)(y)
        return x + y if x.shape == y.shape else y


class MobileNetV3(nn.Module):
    """ReLU in the first stage, hard swish later, hard sigmoid gates."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.hard_swish(ConvNorm(4, 3, 2)(x))
        x = GatedBottleneck(4, 1, nn.relu, nn.hard_sigmoid)(x)
        x = GatedBottleneck(5, 2, nn.hard_swish, nn.hard_sigmoid)(x)
        x = GatedBottleneck(5, 1, nn.hard_swish, nn.hard_sigmoid)(x)
        x = nn.hard_swish(ConvNorm(6, 1)(x)).mean(axis=(1, 2))
        return nn.Dense(4)(nn.hard_swish(nn.Dense(6)(x)))


class EfficientNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.swish(ConvNorm(4, 3, 2)(x))
        x = GatedBottleneck(5, 2, nn.swish, nn.sigmoid, nn.swish)(x)
        x = GatedBottleneck(5, 1, nn.swish, nn.sigmoid, nn.swish)(x)
        x = nn.swish(ConvNorm(6, 1)(x)).mean(axis=(1, 2))
        return nn.Dense(4)(x)


class ConvNeXtBlock(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = nn.Conv(width, (5, 5), feature_group_count=width)(x)
        y = nn.Dense(3 * width)(layer_norm(y))
        y = nn.Dense(width)(nn.gelu(y))
        gamma = self.param("gamma", nn.initializers.ones, (width,))
        return x + y * gamma.reshape((1, 1, 1, width))


class ConvNeXt(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = layer_norm(nn.Conv(4, (2, 2), strides=2)(x))
        x = ConvNeXtBlock()(ConvNeXtBlock()(x))
        x = nn.Conv(6, (2, 2), strides=2)(layer_norm(x))
        x = ConvNeXtBlock()(x)
        return nn.Dense(4)(layer_norm(x.mean(axis=(1, 2))))


@register
def squeeze_excite(name: str) -> Network:
    gate = "SqueezeExcite_0"
    consumers = (f"{gate}/Dense_0", "Conv_1")
    pairs = (("Conv_0", consumers), (f"{gate}/Dense_0", f"{gate}/Dense_1"), ("Conv_1", "Dense_0"))
    scales = 6 + 3 + 5
    return linen(name, SENet(), image(1, 6, 6, 3), shape=(1, 4), pairs=pairs, scales=scales)


@register
def mobilenetv1(name: str) -> Network:
    names = [(f"ConvNorm_{i}/Conv_0", f"ConvNorm_{i}/BatchNorm_0") for i in range(11)]
    pairs = ((*(part for unit in names for part in unit), "Dense_0"),)
    convs = 4 + (4 + 5) + (5 + 6) + (6 + 6) + (6 + 7) + (7 + 7)
    net, inputs = MobileNetV1(), image(1, 16, 16, 3)
    return linen(name, net, inputs, shape=(1, 5), pairs=pairs, scales=2 * convs)


@register
def mobilenetv1_relu6(name: str) -> Network:
    convs = 4 + (4 + 5) + (5 + 6) + (6 + 6) + (6 + 7) + (7 + 7)
    net, inputs = MobileNetV1(nn.relu6), image(1, 16, 16, 3)
    return linen(name, net, inputs, shape=(1, 5), scales=convs)


@register
def mobilenetv3(name: str) -> Network:
    first, second, third = (f"GatedBottleneck_{i}" for i in range(3))
    unit = lambda block, i: (f"{block}/ConvNorm_{i}/Conv_0", f"{block}/ConvNorm_{i}/BatchNorm_0")  # noqa: E731
    gate = f"{first}/SqueezeExcite_0/Dense_0"
    convs, norms = zip(unit(second, 2), unit(third, 2), strict=True)
    pairs = (
        (*unit(first, 0), *unit(first, 1), (gate, f"{first}/ConvNorm_2/Conv_0")),
        (convs, norms, (f"{third}/ConvNorm_0/Conv_0", "ConvNorm_1/Conv_0")),
    )
    convs = 4 + (8 + 8 + 4) + (8 + 8 + 5) + (10 + 10 + 5) + 6
    scales = convs + (8 + 8) + 3 * 2 + 5
    net, inputs = MobileNetV3(), image(1, 16, 16, 3)
    return linen(name, net, inputs, shape=(1, 4), pairs=pairs, scales=scales)


@register
def efficientnet(name: str) -> Network:
    blocks = [f"GatedBottleneck_{i}/ConvNorm_2" for i in range(2)]
    convs, norms = (tuple(f"{b}/{part}" for b in blocks) for part in ("Conv_0", "BatchNorm_0"))
    pairs = ((convs, norms, ("GatedBottleneck_1/ConvNorm_0/Conv_0", "ConvNorm_1/Conv_0")),)
    scales = 4 + (8 + 8 + 5) + (10 + 10 + 5) + 6 + 5
    net, inputs = EfficientNet(), image(1, 16, 16, 3)
    return linen(name, net, inputs, shape=(1, 4), pairs=pairs, scales=scales)


@register
def convnext(name: str) -> Network:
    scales = 2 * (4 + 4) + 4 + (6 + 6) + 6
    note = (
        "in each block the norm's gain moves into the first layer, the layer scale into the second"
    )
    return linen(name, ConvNeXt(), image(1, 12, 12, 3), shape=(1, 4), scales=scales, note=note)
