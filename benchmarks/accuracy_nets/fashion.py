"""Fashion-MNIST: 512 training images for calibration, all 10,000 test images for measuring."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from build_data import DATA
from idx import read_split

from .storage import load_weights
from .subject import Subject

CALIBRATION_BATCH = 64
TEST_BATCH = 100

Preprocess = Callable[[np.ndarray], jax.Array]


def as_inputs(images: jax.Array | np.ndarray) -> jax.Array:
    """Images (n, 28, 28), uint8, to (n, 28, 28, 1), float32 in [-1, 1]."""
    return (jnp.asarray(images, jnp.float32)[..., None] - 127) / 128


def calibration_batches(preprocess: Preprocess) -> list[jax.Array]:
    """The training images that the demo calibrates on, 64 in a batch."""
    with np.load(DATA) as data:
        images = data["calibration_images"]
    return [preprocess(x) for x in np.split(images, len(images) // CALIBRATION_BATCH)]


def test_batches(preprocess: Preprocess) -> tuple[list[jax.Array], list[jax.Array]]:
    """The test images and their labels, 100 in a batch."""
    images, labels = read_split("t10k")
    parts = len(images) // TEST_BATCH
    batches = [preprocess(x) for x in np.split(images, parts)]
    return batches, [jnp.asarray(y, jnp.int32) for y in np.split(labels, parts)]


def trained(name: str, module: nn.Module) -> Subject:
    """A network that the repository trained on Fashion-MNIST."""
    test, labels = test_batches(as_inputs)
    calibration = calibration_batches(as_inputs)
    return Subject(name, module.apply, load_weights(name), calibration, test, labels, "accuracy")
