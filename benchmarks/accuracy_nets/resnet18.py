"""ResNet-18, four times narrower, for Fashion-MNIST, in Flax Linen.

Four stages of two basic blocks (He et al. 2016, table 1, shortcut B) after a 3x3 stem, as the
images are small: 28, 28, 14, 7, 4. Invariant: training and evaluation have the same parameters.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from .fashion import trained
from .subject import Subject

CLASSES = 10
STAGES = (16, 32, 64, 128)
BLOCKS = 2


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside the input, or beside its projection where the shapes differ."""

    channels: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.normed(x, 3, self.stride, "conv1"))
        y = self.normed(y, 3, 1, "conv2")
        if x.shape != y.shape:
            x = self.normed(x, 1, self.stride, "shortcut")
        return nn.relu(x + y)

    def normed(self, x: jax.Array, size: int, stride: int, name: str) -> jax.Array:
        return conv_norm(x, self.channels, size, stride, self.train, name)


def conv_norm(
    x: jax.Array, channels: int, size: int, stride: int, train: bool, name: str
) -> jax.Array:
    """A convolution without bias, then BatchNorm."""
    conv = nn.Conv(
        channels, (size, size), strides=stride, padding=size // 2, use_bias=False, name=name
    )
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.97, name=f"{name}_norm")
    return norm(conv(x))


class ResNet18(nn.Module):
    """Images (N, 28, 28, 1) in [-1, 1] to logits (N, 10)."""

    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(conv_norm(x, STAGES[0], 3, 1, self.train, "stem"))
        for stage, channels in enumerate(STAGES, 1):
            for block in range(1, BLOCKS + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = BasicBlock(channels, stride, self.train, name=f"stage{stage}block{block}")(x)
        return nn.Dense(CLASSES, name="classifier")(x.mean((1, 2)))


def load() -> Subject:
    """With the weights of `train_resnet18.py`."""
    return trained("resnet18", ResNet18())
