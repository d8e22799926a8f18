"""Trains MobileNetV2 and writes weights/mobilenet_v2.npz.

python -m benchmarks.accuracy_nets.train_mobilenet_v2
"""

from __future__ import annotations

from .classifier import Settings, train_classifier
from .mobilenet_v2 import MobileNetV2

if __name__ == "__main__":
    train_classifier("mobilenet_v2", MobileNetV2, Settings(epochs=5))
