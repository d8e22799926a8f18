"""EfficientNet-Lite0 in Flax Linen.

Lite0 is MobileNetV2 with the EfficientNet-B0 table: a 3x3 stem, seven stages of inverted residuals
(expand 1x1, depthwise k x k, project 1x1), a 1x1 head, average pooling, one dense layer. BatchNorm
follows each convolution, ReLU6 each but the projections. Source: Tan and Le 2019, table 1, with the
Lite changes (no squeeze-and-excite, ReLU6 for swish, stem and head not scaled).

Invariant: this is a plain model in evaluation mode; nothing in it knows about quantization.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax

BN_EPSILON = 1e-3
HEAD_CHANNELS = 1280
STEM_CHANNELS = 32


class Stage(NamedTuple):
    """One row of the Lite0 table; `stride` belongs to the first block only."""

    expansion: int
    channels: int
    blocks: int
    stride: int
    kernel: int


STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1, 3),
)


def block_names() -> list[str]:
    """The blocks in order: stage number, then a letter: block1a, block2a, block2b, ..."""
    letters = "abcd"
    return [f"block{i}{letters[j]}" for i, s in enumerate(STAGES, 1) for j in range(s.blocks)]


def layer_names() -> list[str]:
    """The modules with kernels, in the order of the data flow."""
    first, *others = block_names()
    inner = [f"{block}/{part}" for block in others for part in ("expand", "depthwise", "project")]
    return ["stem", f"{first}/depthwise", f"{first}/project", *inner, "head", "classifier"]


def _pairs() -> tuple[tuple[str, ...], ...]:
    inner = ("expand", "expand_norm", "depthwise", "depthwise_norm", "project")
    first, *others = block_names()
    return (
        ("stem", "stem_norm", *(f"{first}/{part}" for part in inner[2:])),
        *(tuple(f"{block}/{part}" for part in inner) for block in others),
        (f"{first}/project", f"{first}/project_norm", f"{others[0]}/expand"),
        (f"{others[-1]}/project", f"{others[-1]}/project_norm", "head", "head_norm", "classifier"),
    )


# The chains of layers with nothing between them but a norm, a clip or the average pool.
PAIRS = _pairs()


def conv(channels: int, kernel: int, stride: int, name: str, groups: int = 1) -> nn.Conv:
    """A convolution without bias, padded by kernel // 2 on both sides as torch does."""
    return nn.Conv(
        channels,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        feature_group_count=groups,
        use_bias=False,
        name=name,
    )


def norm(name: str) -> nn.BatchNorm:
    """BatchNorm with the stored mean and variance."""
    return nn.BatchNorm(use_running_average=True, epsilon=BN_EPSILON, name=name)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; plus the input where the shapes agree."""

    stage: Stage
    stride: int
    activation: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs, width = x, x.shape[-1] * self.stage.expansion
        if self.stage.expansion > 1:
            x = self.activation(norm("expand_norm")(conv(width, 1, 1, "expand")(x)))
        x = conv(width, self.stage.kernel, self.stride, "depthwise", groups=width)(x)
        x = self.activation(norm("depthwise_norm")(x))
        x = norm("project_norm")(conv(self.stage.channels, 1, 1, "project")(x))
        return x + inputs if x.shape == inputs.shape else x


class Lite0(nn.Module):
    """EfficientNet-Lite0: images (N, H, W, 3) in [-1, 1] to logits (N, classes)."""

    classes: int = 1000
    activation: Callable[[jax.Array], jax.Array] = nn.relu6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.activation(norm("stem_norm")(conv(STEM_CHANNELS, 3, 2, "stem")(x)))
        names = iter(block_names())
        for stage in STAGES:
            for position in range(stage.blocks):
                stride = 1 if position else stage.stride
                x = InvertedResidual(stage, stride, self.activation, name=next(names))(x)
        x = self.activation(norm("head_norm")(conv(HEAD_CHANNELS, 1, 1, "head")(x)))
        return nn.Dense(self.classes, name="classifier")(x.mean((1, 2)))
