"""The folded networks in PyTorch, with the weights that `export.py` wrote.

    python benchmarks/rivals/torch_networks.py NETWORK FOLDER     writes FOLDER/NETWORK.onnx

Layers are made in the order in which data meet them, which is the order of the arrays in the file.
ReLU stands for ReLU6, as the rivals' own preparation makes it, or they would find hardly any pair.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# Expansion, channels, blocks, stride of the first block, kernel.
MOBILENET_V2 = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3)),
    *((6, 96, 3, 1, 3), (6, 160, 3, 2, 3), (6, 320, 1, 1, 3)),
)
LITE0 = (
    *((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3)),
    *((6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)),
)
RESNET50 = (3, 4, 6, 3)


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """With a bias, as its norm is folded."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; plus the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, size: int) -> None:
        super().__init__()
        width = inputs * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [conv(inputs, width, 1), nn.ReLU()]
        layers += [conv(width, width, size, stride, width), nn.ReLU(), conv(width, outputs, 1)]
        self.layers = nn.Sequential(*layers)
        self.adds = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = self.layers(x)
        return x + y if self.adds else y


class Bottleneck(nn.Module):
    """ResNet's bottleneck block."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.one = conv(inputs, features, 1)
        self.relu1 = nn.ReLU()
        self.two = conv(features, features, 3, stride)
        self.relu2 = nn.ReLU()
        self.three = conv(features, 4 * features, 1)
        self.beside = None
        if stride > 1 or inputs != 4 * features:
            self.beside = conv(inputs, 4 * features, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = self.three(self.relu2(self.two(self.relu1(self.one(x)))))
        return self.relu(y + (x if self.beside is None else self.beside(x)))


def mobile(stages: tuple[tuple[int, ...], ...]) -> nn.Sequential:
    """MobileNetV2 and its relatives."""
    layers: list[nn.Module] = [conv(3, 32, 3, 2), nn.ReLU()]
    width = 32
    for expansion, channels, blocks, stride, size in stages:
        for block in range(blocks):
            step = 1 if block else stride
            layers.append(InvertedResidual(width, channels, step, expansion, size))
            width = channels
    layers += [conv(width, 1280, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def resnet(stages: tuple[int, ...]) -> nn.Sequential:
    """ResNet with bottleneck blocks."""
    layers: list[nn.Module] = [conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for stage, blocks in enumerate(stages):
        for block in range(blocks):
            features = 64 * 2**stage
            layers.append(Bottleneck(width, features, 2 if stage and not block else 1))
            width = 4 * features
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def weighted(module: nn.Module) -> list[nn.Module]:
    """The layers with weights, in order."""
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def load(name: str, folder: Path) -> nn.Module:
    """A network with the exported weights."""
    builders = {"mobilenet_v2": (mobile, MOBILENET_V2), "lite0": (mobile, LITE0)}
    builders["resnet50"] = (resnet, RESNET50)
    build, stages = builders[name]
    module = build(stages).eval()
    with np.load(folder / f"{name}.npz") as arrays, torch.no_grad():
        layers = weighted(module)
        assert len(arrays.files) == 2 * len(layers), (name, len(arrays.files), len(layers))
        for number, layer in enumerate(layers):
            layer.weight.copy_(torch.from_numpy(arrays[f"weight{number}"]))
            layer.bias.copy_(torch.from_numpy(arrays[f"bias{number}"]))
    return module


def export_onnx(name: str, folder: Path) -> None:
    """The same as an ONNX file."""
    target, x = str(folder / f"{name}.onnx"), torch.zeros(1, 3, 224, 224)
    torch.onnx.export(load(name, folder), (x,), target, opset_version=13, dynamo=False)


if __name__ == "__main__":
    export_onnx(sys.argv[1], Path(sys.argv[2]))
