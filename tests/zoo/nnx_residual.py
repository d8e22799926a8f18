"""Residual networks in NNX: the twins of the Linen ResNet-18 and MobileNetV2."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import jax
from flax import nnx

from zoo.base import Chains, Network, image, nnx_net, register
from zoo.residual import MOBILENET_CONVS, MOBILENET_STAGES, RESNET_WIDTHS


class ConvNorm(nnx.Module):
    def __init__(
        self,
        inputs: int,
        features: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        *,
        folded: bool,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inputs,
            features,
            (kernel, kernel),
            strides=stride,
            feature_group_count=groups,
            use_bias=folded,
            rngs=rngs,
        )
        self.norm = None if folded else nnx.BatchNorm(features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)


class BasicBlock(nnx.Module):
    def __init__(self, inputs: int, features: int, stride: int, folded: bool, rngs: nnx.Rngs):
        unit = lambda *args: ConvNorm(*args, folded=folded, rngs=rngs)  # noqa: E731
        self.first = unit(inputs, features, 3, stride)
        self.second = unit(features, features, 3)
        same = stride == 1 and inputs == features
        self.project = None if same else unit(inputs, features, 1, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.second(nnx.relu(self.first(x)))
        return nnx.relu(y + (x if self.project is None else self.project(x)))


class ResNet18(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, folded: bool = False):
        self.stem = ConvNorm(3, RESNET_WIDTHS[0], 7, 2, folded=folded, rngs=rngs)
        blocks, inputs = [], RESNET_WIDTHS[0]
        for stage, width in enumerate(RESNET_WIDTHS):
            blocks.append(BasicBlock(inputs, width, 2 if stage else 1, folded, rngs))
            blocks.append(BasicBlock(width, width, 1, folded, rngs))
            inputs = width
        self.blocks = nnx.Sequential(*blocks)
        self.head = nnx.Linear(inputs, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.max_pool(nnx.relu(self.stem(x)), (3, 3), (2, 2), padding="SAME")
        return self.head(self.blocks(x).mean(axis=(1, 2)))


class InvertedResidual(nnx.Module):
    def __init__(
        self,
        inputs: int,
        features: int,
        stride: int,
        expansion: int,
        act: Callable[[jax.Array], jax.Array],
        folded: bool,
        rngs: nnx.Rngs,
    ):
        unit = lambda *args: ConvNorm(*args, folded=folded, rngs=rngs)  # noqa: E731
        hidden = inputs * expansion
        self.act = act
        self.skip = stride == 1 and inputs == features
        self.expand = None if expansion == 1 else unit(inputs, hidden, 1)
        self.depthwise = unit(hidden, hidden, 3, stride, hidden)
        self.project = unit(hidden, features, 1)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x if self.expand is None else self.act(self.expand(x))
        y = self.project(self.act(self.depthwise(y)))
        return x + y if self.skip else y


class MobileNetV2(nnx.Module):
    def __init__(
        self,
        rngs: nnx.Rngs,
        act: Callable[[jax.Array], jax.Array] = nnx.relu6,
        folded: bool = False,
    ):
        self.act = act
        self.stem = ConvNorm(3, 4, 3, 2, folded=folded, rngs=rngs)
        blocks, inputs = [], 4
        for expansion, features, repeats, stride in MOBILENET_STAGES:
            for i in range(repeats):
                step = 1 if i else stride
                blocks.append(
                    InvertedResidual(inputs, features, step, expansion, act, folded, rngs)
                )
                inputs = features
        self.blocks = nnx.Sequential(*blocks)
        self.last = ConvNorm(inputs, 8, 1, folded=folded, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.act(self.last(self.blocks(self.act(self.stem(x)))))
        return self.head(x.mean(axis=(1, 2)))


def chain(producers: list[str], consumers: list[str], folded: bool) -> Chains:
    """Producers, their norms when live, consumers."""
    norms = () if folded else (tuple(f"{p}/norm" for p in producers),)
    heads = tuple(c if c == "head" else f"{c}/conv" for c in consumers)
    return (tuple(f"{p}/conv" for p in producers), *norms, heads)


def resnet_pairs(folded: bool) -> Chains:
    """Inside each block, and one group for each stage's residual sum."""
    blocks = [f"blocks/layers/{i}" for i in range(8)]
    chains = [chain([f"{b}/first"], [f"{b}/second"], folded) for b in blocks]
    for i in range(0, 8, 2):
        start = f"{blocks[i]}/project" if i else "stem"
        inside = [f"{b}/first" for b in (blocks[i : i + 2] if i == 0 else [blocks[i + 1]])]
        after = [f"{blocks[i + 2]}/first", f"{blocks[i + 2]}/project"] if i < 6 else ["head"]
        producers = [start, f"{blocks[i]}/second", f"{blocks[i + 1]}/second"]
        chains.append(chain(producers, inside + after, folded))
    return tuple(chains)


def mobilenet_pairs(folded: bool) -> Chains:
    """Folded with ReLU: everything. With ReLU6: only the linear bottlenecks."""
    blocks = [f"blocks/layers/{i}" for i in range(7)]
    chains = [chain(["stem"], [f"{blocks[0]}/depthwise"], folded)] if folded else []
    for b in blocks if folded else ():
        parts = ["depthwise", "project"] if b == blocks[0] else ["expand", "depthwise", "project"]
        for first, second in pairwise(parts):
            chains.append(chain([f"{b}/{first}"], [f"{b}/{second}"], folded))
    for stage in ((0,), (1, 2), (3, 4, 5)):
        consumers = [f"{blocks[i + 1]}/expand" for i in stage]
        chains.append(chain([f"{blocks[i]}/project" for i in stage], consumers, folded))
    chains.append(chain([f"{blocks[6]}/project"], ["last"], folded))
    if folded:
        chains.append(chain(["last"], ["head"], folded))
    return tuple(chains)


@register
def resnet18_nnx(name: str) -> Network:
    pairs, inputs = resnet_pairs(folded=False), image(1, 64, 64, 3)
    scales = 3 + 4 * 3 + 5 * (4 + 5 + 6) + 3 * sum(RESNET_WIDTHS)
    return nnx_net(name, ResNet18, inputs, shape=(1, 5), pairs=pairs, scales=scales)


@register
def resnet18_folded_nnx(name: str) -> Network:
    pairs, inputs = resnet_pairs(folded=True), image(1, 64, 64, 3)
    make = lambda rngs: ResNet18(rngs, folded=True)  # noqa: E731
    scales = 3 * sum(RESNET_WIDTHS)
    return nnx_net(name, make, inputs, shape=(1, 5), pairs=pairs, scales=scales)


@register
def mobilenetv2_nnx(name: str) -> Network:
    pairs, inputs = mobilenet_pairs(folded=False), image(1, 16, 16, 3)
    scales = MOBILENET_CONVS + 3 + 4 + 5 + 6
    return nnx_net(name, MobileNetV2, inputs, shape=(1, 5), pairs=pairs, scales=scales)


@register
def mobilenetv2_folded_nnx(name: str) -> Network:
    pairs, inputs = mobilenet_pairs(folded=True), image(1, 16, 16, 3)
    make = lambda rngs: MobileNetV2(rngs, nnx.relu, folded=True)  # noqa: E731
    scales = MOBILENET_CONVS - (4 + 5 + 5)
    return nnx_net(name, make, inputs, shape=(1, 5), pairs=pairs, scales=scales)
