"""What is known of a value without data: its distribution, per channel.

A random value is a function of a Gaussian, tabulated at the same points for every channel,

    x = g(mean + std * z),   z in [-8, 8],      E[x] = sum_k w_k x_k,   w_k ~ exp(-z_k**2 / 2)

so that any chain of elementwise ops is evaluated by running the ops themselves: the trapezoid rule
is exact to rounding for smooth functions and to 1e-4 standard deviations across a kink. Axes along
which a value is the same (batch, positions) have size one. The invariant: two values with equal
`latent` are functions of the same Gaussian at each position.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

_POINTS = 513
Z = np.linspace(-8.0, 8.0, _POINTS)
_DENSITY = np.exp(-0.5 * Z**2)
_WEIGHTS = _DENSITY / _DENSITY.sum()


@dataclass(frozen=True, eq=False)
class Known:
    """A value.

    Attributes:
        points: (points or 1, *shape): its values at the points; axes of size one are broadcast.
        latent: names the Gaussian behind it; `None` for what does not depend on the inputs.
        error: what rounding the weights has added to its mean, as far as no bias took it yet.
    """

    points: Any
    latent: Hashable = None
    error: np.ndarray | None = None

    @property
    def mean(self) -> np.ndarray:
        """The mean, in float64."""
        return np.tensordot(self._weights, self._wide, 1)

    @property
    def var(self) -> np.ndarray:
        """The variance, in float64."""
        return np.tensordot(self._weights, (self._wide - self.mean) ** 2, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, with axes of size one where it is constant."""
        return tuple(self.points.shape[1:])

    def with_error(self, error: np.ndarray | None) -> Known:
        """The same value with another error."""
        return replace(self, error=error)

    @property
    def _wide(self) -> np.ndarray:
        return np.asarray(self.points).astype(np.float64)

    @property
    def _weights(self) -> np.ndarray:
        return _WEIGHTS if self.points.shape[0] > 1 else np.ones(1)


def gaussian(mean: np.ndarray, var: np.ndarray, latent: Hashable, dtype: Any) -> Known:
    """A Gaussian of its own; variance 0 is a constant."""
    mean, var = np.broadcast_arrays(mean, var)
    z = Z.reshape(-1, *(1,) * mean.ndim)
    return Known(jnp.asarray(mean[None] + z * np.sqrt(var)[None]).astype(dtype), latent)


def constant(array: Any) -> Known:
    """A value that does not depend on the inputs, its equal positions kept once."""
    if array.dtype.kind in "fiubV" and array.size > 1:
        plain = np.asarray(array)
        for axis, size in enumerate(plain.shape):
            first = np.take(plain, [0], axis=axis)
            plain = first if size > 1 and bool((plain == first).all()) else plain
        array = jnp.asarray(plain).astype(array.dtype)
    return Known(jnp.asarray(array)[None])
