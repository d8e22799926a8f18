"""Lite0 with its 1000 ImageNet classes, on random crops of photos that come with two packages.

The photos have no ImageNet labels, so that what counts is how often int8 agrees with float.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
from PIL import Image
from sklearn.datasets import load_sample_images

from imagenet import imagenet_variables
from lite0 import Lite0

from .subject import Subject

PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "clock",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
)  # those in scikit-image's wheel; its other pictures are drawings or are downloaded
IMAGE_SIZE = 224
BATCH = 32
CALIBRATION_CROPS, CALIBRATION_SEED = 128, 1
TEST_CROPS, TEST_SEED = 1024, 0
AREA = (0.15, 1.0)  # of the photo
RATIO = (3 / 4, 4 / 3)  # width to height
JITTER = (0.7, 1.3)  # of brightness and contrast


def photos() -> list[Image.Image]:
    """All photos, in three colors."""
    arrays = [getattr(skimage.data, name)() for name in PHOTOS]
    return [Image.fromarray(x).convert("RGB") for x in [*arrays, *load_sample_images().images]]


def random_crop(photo: Image.Image, rng: np.random.Generator, size: int) -> np.ndarray:
    """A part of the photo as (size, size, 3) bytes, mirrored half of the time, with other light."""
    area, ratio = rng.uniform(*AREA), np.exp(rng.uniform(*np.log(RATIO)))
    width = min(photo.width, np.sqrt(area * photo.width * photo.height * ratio))
    height = min(photo.height, np.sqrt(area * photo.width * photo.height / ratio))
    left, top = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    box = (left, top, left + width, top + height)
    cut = photo.resize((size, size), Image.Resampling.BILINEAR, box)
    pixels = np.asarray(cut, np.float32)[:, :: rng.choice((-1, 1))]
    brightness, contrast = rng.uniform(*JITTER, 2)
    jittered = brightness * (pixels.mean() + contrast * (pixels - pixels.mean()))
    return np.clip(np.rint(jittered), 0, 255).astype(np.uint8)


def crops(count: int, seed: int, size: int = IMAGE_SIZE) -> list[jax.Array]:
    """Batches of crops, from each photo in turn, as Lite0 was trained to see them."""
    rng, sources = np.random.default_rng(seed), photos()
    pixels = np.stack([random_crop(sources[i % len(sources)], rng, size) for i in range(count)])
    return [(jnp.asarray(x, jnp.float32) - 127) / 128 for x in np.split(pixels, count // BATCH)]


def load() -> Subject:
    """1,024 crops for measuring, 128 others for calibration."""
    return Subject(
        name="lite0_photos",
        fn=Lite0().apply,
        variables=jax.tree.map(jnp.asarray, imagenet_variables()),
        calibration=crops(CALIBRATION_CROPS, CALIBRATION_SEED),
        test=crops(TEST_CROPS, TEST_SEED),
        labels=None,
        metric="agreement",
    )
