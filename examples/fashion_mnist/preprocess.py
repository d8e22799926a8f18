"""From Fashion-MNIST's bytes to what Lite0 was trained on: larger, three channels, [-1, 1].

x = (bilinear(image) - 127) / 128, as in EfficientNet-Lite's training, in each channel.

The side is odd and stays so under the first strides (49, 25, 13, 7, 4, 2). There a padding of
kernel // 2 on both sides is what TensorFlow's SAME is, with which the weights were trained: on
held-out training images 49 beats 48 by two points.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

IMAGE_SIZE = 49


@jax.jit
def preprocess(images: jax.Array | np.ndarray) -> jax.Array:
    """Images (n, 28, 28), uint8, to (n, IMAGE_SIZE, IMAGE_SIZE, 3), float32."""
    shape = (images.shape[0], IMAGE_SIZE, IMAGE_SIZE)
    large = jax.image.resize(jnp.asarray(images, jnp.float32), shape, "bilinear")
    return jnp.repeat(((large - 127) / 128)[..., None], 3, axis=-1)
