"""The two grid values around each weight, on the grid that quantization gives to the weights.

    w = (down + width * h) * scale + error,     h = 0 or 1,     width = 0 where there is no choice

There is none for a weight that is on the grid, beyond its range, or at an end of it: whoever looks
for the range of rounded weights must find the same grid. The invariant: all is in steps of the
grid, in the arrangement (layers, groups, outputs, inputs).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxcle.paths import wide_dtype
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.grid import make_grid
from flaxcle.quantize.weights import weight_range

_SIDES = (jnp.floor, jnp.ceil)


class Choices(NamedTuple):
    """Per weight: the exact value and the lower grid value in steps, and the way up, 0 or 1.

    `scale` is the size of a step, broadcastable.
    """

    exact: jax.Array
    down: jax.Array
    width: jax.Array
    scale: jax.Array

    def nearest(self) -> jax.Array:
        """The nearest choice, 0 or 1."""
        return jnp.where(self.exact - self.down > 0.5, self.width, 0)

    def weights(self, up: jax.Array) -> jax.Array:
        """The weights of a choice."""
        return (self.down + self.width * up) * self.scale


def find_choices(stack: jax.Array, config: QuantConfig) -> Choices:
    """The choices of a stack; every layer has its own grid."""
    return jax.vmap(partial(_of_layer, config=config))(stack)


def _of_layer(w: jax.Array, config: QuantConfig) -> Choices:
    w = w.astype(wide_dtype(w.dtype))
    low, high = weight_range(w, config, (0, 1))
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    if config.weight_symmetric:
        high = jnp.maximum(-low, high)
        low = -high
    scale, zero, *ends = make_grid(
        low, high, config.weight_bits or 8, symmetric=config.weight_symmetric
    )
    exact = w / scale
    sides = [jnp.clip(side(exact), ends[0] - zero, ends[1] - zero) for side in _SIDES]
    real = high - low > scale / 2
    for beyond, end in zip((w <= low, w >= high), ends, strict=True):
        sides = [jnp.where(real & beyond, end - zero, side) for side in sides]
    down, up = sides
    return Choices(exact, down, up - down, scale)
