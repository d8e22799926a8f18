"""Residual networks in Linen: ResNet-18 and MobileNetV2, with live BatchNorm and folded."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from zoo.base import Chains, Network, image, linen, register

# Stem and four stages, ImageNet topology at a width that a dense rank computation can take.
RESNET_WIDTHS = (3, 4, 5, 6)
# (expansion, channels, repeats, stride): MobileNetV2's table, thinned.
MOBILENET_STAGES = ((1, 3, 1, 1), (2, 4, 2, 2), (2, 5, 3, 2), (3, 6, 1, 1))
# Output channels of all convolutions: stem, (expand, depthwise, project) of each block, head.
MOBILENET_CONVS = 4 + (4 + 3) + (6 + 6 + 4) + (8 + 8 + 4) + (8 + 8 + 5) + 2 * (10 + 10 + 5) + 36 + 8


class ConvNorm(nn.Module):
    """Convolution and live BatchNorm, or one convolution with bias when folded."""

    features: int
    kernel: int = 3
    stride: int = 1
    groups: int = 1
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = nn.Conv(
            self.features,
            (self.kernel, self.kernel),
            strides=self.stride,
            feature_group_count=self.groups,
            use_bias=self.folded,
        )
        return conv(x) if self.folded else nn.BatchNorm(use_running_average=True)(conv(x))


class BasicBlock(nn.Module):
    features: int
    stride: int
    folded: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(ConvNorm(self.features, 3, self.stride, folded=self.folded)(x))
        y = ConvNorm(self.features, 3, folded=self.folded)(y)
        if x.shape != y.shape:
            x = ConvNorm(self.features, 1, self.stride, folded=self.folded)(x)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(ConvNorm(RESNET_WIDTHS[0], 7, 2, folded=self.folded)(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        for stage, width in enumerate(RESNET_WIDTHS):
            x = BasicBlock(width, 2 if stage else 1, self.folded)(x)
            x = BasicBlock(width, 1, self.folded)(x)
        return nn.Dense(5)(x.mean(axis=(1, 2)))


class InvertedResidual(nn.Module):
    features: int
    stride: int
    expansion: int
    act: Callable[[jax.Array], jax.Array]
    folded: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = x.shape[-1] * self.expansion
        y = x
        if self.expansion != 1:
            y = self.act(ConvNorm(hidden, 1, folded=self.folded)(y))
        y = self.act(ConvNorm(hidden, 3, self.stride, hidden, self.folded)(y))
        y = ConvNorm(self.features, 1, folded=self.folded)(y)
        return x + y if x.shape == y.shape else y


class MobileNetV2(nn.Module):
    act: Callable[[jax.Array], jax.Array] = nn.relu6
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.act(ConvNorm(4, 3, 2, folded=self.folded)(x))
        for expansion, features, repeats, stride in MOBILENET_STAGES:
            for i in range(repeats):
                x = InvertedResidual(
                    features, 1 if i else stride, expansion, self.act, self.folded
                )(x)
        x = self.act(ConvNorm(8, 1, folded=self.folded)(x))
        return nn.Dense(5)(x.mean(axis=(1, 2)))


Unit = tuple[str, int]


def conv(block: str, i: int) -> str:
    """The convolution of a block's i-th ConvNorm."""
    return f"{block}/ConvNorm_{i}/Conv_0"


def norm(block: str, i: int) -> str:
    """The norm of a block's i-th ConvNorm."""
    return f"{block}/ConvNorm_{i}/BatchNorm_0"


def resnet_pairs(folded: bool) -> Chains:
    """Inside each block, and one group for each stage's residual sum."""
    blocks = [f"BasicBlock_{i}" for i in range(8)]
    inner = [chain([(b, 0)], [(b, 1)], folded) for b in blocks]
    stages = []
    for stage in range(4):
        first, second = blocks[2 * stage : 2 * stage + 2]
        carry = ("", 0) if stage == 0 else (first, 2)
        after = [(blocks[2 * stage + 2], 0), (blocks[2 * stage + 2], 2)] if stage < 3 else []
        inside = [(first, 0)] if stage == 0 else []
        stages.append(
            chain([carry, (first, 1), (second, 1)], [*inside, (second, 0), *after], folded)
        )
    stages[-1] = (*stages[-1][:-1], (*stages[-1][-1], "Dense_0"))
    return (*inner, *stages)


def mobilenet_pairs(folded: bool) -> Chains:
    """Folded with ReLU: everything. With ReLU6: only the bottlenecks, which have no clip."""
    blocks = [f"InvertedResidual_{i}" for i in range(7)]
    chains = [] if not folded else [chain([("", 0)], [(blocks[0], 0)], folded)]
    for b in blocks if folded else ():
        last = 1 if b == blocks[0] else 2
        chains += [chain([(b, i)], [(b, i + 1)], folded) for i in range(last)]
    for stage in ((0,), (1, 2), (3, 4, 5)):
        producers = [(blocks[i], 1 if i == 0 else 2) for i in stage]
        chains.append(chain(producers, [(blocks[i + 1], 0) for i in stage], folded))
    chains.append(chain([(blocks[6], 2)], [("", 1)], folded))
    if folded:
        chains.append(("ConvNorm_1/Conv_0", "Dense_0"))
    return tuple(chains)


def chain(producers: list[Unit], consumers: list[Unit], folded: bool) -> Chains:
    """Producers, their norms when live, consumers."""
    name = lambda kind, site: kind(*site).removeprefix("/")  # noqa: E731
    norms = () if folded else (tuple(name(norm, p) for p in producers),)
    return (
        tuple(name(conv, p) for p in producers),
        *norms,
        tuple(name(conv, c) for c in consumers),
    )


@register
def resnet18(name: str) -> Network:
    pairs, inputs = resnet_pairs(folded=False), image(1, 64, 64, 3)
    convs = 3 + 4 * 3 + 5 * (4 + 5 + 6)
    sums = 3 * sum(RESNET_WIDTHS)
    return linen(name, ResNet18(), inputs, shape=(1, 5), pairs=pairs, scales=convs + sums)


@register
def resnet18_folded(name: str) -> Network:
    pairs, inputs = resnet_pairs(folded=True), image(1, 64, 64, 3)
    sums = 3 * sum(RESNET_WIDTHS)
    return linen(name, ResNet18(True), inputs, shape=(1, 5), pairs=pairs, scales=sums)


@register
def mobilenetv2(name: str) -> Network:
    pairs, inputs = mobilenet_pairs(folded=False), image(1, 16, 16, 3)
    sums = 3 + 4 + 5 + 6
    scales = MOBILENET_CONVS + sums
    return linen(name, MobileNetV2(), inputs, shape=(1, 5), pairs=pairs, scales=scales)


@register
def mobilenetv2_folded(name: str) -> Network:
    pairs, inputs = mobilenet_pairs(folded=True), image(1, 16, 16, 3)
    net, shared = MobileNetV2(nn.relu, folded=True), 4 + 5 + 5
    scales = MOBILENET_CONVS - shared
    return linen(name, net, inputs, shape=(1, 5), pairs=pairs, scales=scales)
