"""The demo's network: Lite0's ImageNet backbone with a trained Fashion-MNIST head."""

from __future__ import annotations

from lite0 import Lite0
from preprocess import preprocess
from run import float_variables
from train_head import CLASSES

from .fashion import calibration_batches, test_batches
from .subject import Subject


def load() -> Subject:
    """As in the demo, but on all 10,000 test images."""
    test, labels = test_batches(preprocess)
    return Subject(
        name="lite0_head",
        fn=Lite0(classes=CLASSES).apply,
        variables=float_variables(),
        calibration=calibration_batches(preprocess),
        test=test,
        labels=labels,
        metric="accuracy",
    )
