"""Trains ResNet-18 and writes weights/resnet18.npz.

python -m benchmarks.accuracy_nets.train_resnet18
"""

from __future__ import annotations

from .classifier import Settings, train_classifier
from .resnet18 import ResNet18

if __name__ == "__main__":
    train_classifier("resnet18", ResNet18, Settings(epochs=3))
