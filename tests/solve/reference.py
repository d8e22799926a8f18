"""Nagel's algorithm in NumPy float64, written from the paper: pairs in turn until nothing moves.

Nothing here knows the solver: kernels are plain arrays with named channel axes, and a pair divides
the producer's channel by sqrt(r1 / r2), its bias too, and multiplies the consumer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """Two kernels and the axes on which they share channels; a bias of the first, perhaps."""

    first: str
    axis: int
    second: str
    other_axis: int
    bias: str | None = None


def equalized(
    weights: dict[str, np.ndarray], pairs: Sequence[Pair], tolerance: float = 1e-9
) -> dict[str, np.ndarray]:
    """Cross-layer equalization, eq. 11 of Nagel et al. 2019, to convergence."""
    weights = {name: np.array(value, np.float64) for name, value in weights.items()}
    for _ in range(10_000):
        if max(_balance(weights, pair) for pair in pairs) < tolerance:
            return weights
    raise AssertionError("the reference does not converge")


def _balance(weights: dict[str, np.ndarray], pair: Pair) -> float:
    """Equalizes one pair in place and returns the largest |log| of its scales."""
    r1 = _range(weights[pair.first], pair.axis)
    r2 = _range(weights[pair.second], pair.other_axis)
    s = np.sqrt(r1 / r2)
    weights[pair.first] /= _along(s, weights[pair.first], pair.axis)
    weights[pair.second] *= _along(s, weights[pair.second], pair.other_axis)
    if pair.bias:
        weights[pair.bias] /= s
    return float(np.abs(np.log(s)).max())


def _range(weight: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(1)


def _along(values: np.ndarray, weight: np.ndarray, axis: int) -> np.ndarray:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return values.reshape(shape)
