"""MobileNetV2 of width 0.35 for Fashion-MNIST, in Flax Linen.

The table of Sandler et al. 2018 (table 2) with the strides of a 28x28 image: 28, 14, 7, 4. ReLU6
follows each BatchNorm but those of the projections. Invariant: training and evaluation have the
same parameters; they differ in the statistics and in how the depthwise convolution is computed.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from .depthwise import ShiftedDepthwise
from .fashion import trained
from .subject import Subject

CLASSES = 10
STEM_CHANNELS, HEAD_CHANNELS = 16, 448
# Expansion, channels, blocks, stride of the first block.
STAGES = (
    (1, 8, 1, 1),
    (6, 8, 2, 2),
    (6, 16, 3, 2),
    (6, 24, 4, 1),
    (6, 32, 3, 1),
    (6, 56, 3, 2),
    (6, 112, 1, 1),
)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; plus the input where the shapes agree."""

    expansion: int
    channels: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, width = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            x = nn.Conv(width, (1, 1), use_bias=False, name="expand")(x)
            x = nn.relu6(norm(self.train, "expand_norm")(x))
        x = nn.relu6(norm(self.train, "depthwise_norm")(self.depthwise(x)))
        x = nn.Conv(self.channels, (1, 1), use_bias=False, name="project")(x)
        x = norm(self.train, "project_norm")(x)
        return x + inputs if x.shape == inputs.shape else x

    def depthwise(self, x: jax.Array) -> jax.Array:
        if self.train:
            return ShiftedDepthwise(3, self.stride, name="depthwise")(x)
        channels = x.shape[-1]
        return nn.Conv(
            channels,
            (3, 3),
            strides=self.stride,
            padding=1,
            feature_group_count=channels,
            use_bias=False,
            name="depthwise",
        )(x)


def norm(train: bool, name: str) -> nn.BatchNorm:
    """BatchNorm with the statistics of the batch, which it also averages, or with the average."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.97, epsilon=1e-3, name=name)


class MobileNetV2(nn.Module):
    """Images (N, 28, 28, 1) in [-1, 1] to logits (N, 10)."""

    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(STEM_CHANNELS, (3, 3), padding=1, use_bias=False, name="stem")(x)
        x = nn.relu6(norm(self.train, "stem_norm")(x))
        for number, (expansion, channels, blocks, stride) in enumerate(STAGES, 1):
            for letter, step in zip("abcd", (stride, 1, 1, 1)[:blocks], strict=False):
                block = InvertedResidual(
                    expansion, channels, step, self.train, name=f"block{number}{letter}"
                )
                x = block(x)
        x = nn.Conv(HEAD_CHANNELS, (1, 1), use_bias=False, name="head")(x)
        x = nn.relu6(norm(self.train, "head_norm")(x))
        return nn.Dense(CLASSES, name="classifier")(x.mean((1, 2)))


def load() -> Subject:
    """With the weights of `train_mobilenet_v2.py`."""
    return trained("mobilenet_v2", MobileNetV2())
