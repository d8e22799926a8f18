"""A tensor against its integer grid: what is clipped, what vanishes, how the rest is spread.

    steps = round(x / scale)          an integer, counted from zero
    clipped      steps outside of the grid
    vanished     x != 0 and steps == 0: under half a step

The state of a tensor is sums and counts, so that batches add up. The invariant: every element
is in one bin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.compare import decibel
from flaxcle.paths import wide_dtype
from flaxcle.quantize.grid import Grid, snap

State = dict[str, jax.Array]
SUMS = ("zeros", "vanished", "signal", "noise", "bins")
_FINEST = 8  # bits: a bin of a finer grid holds several steps


@dataclass(frozen=True)
class Histogram:
    """How many elements of a tensor lie on each step of its grid.

    Attributes:
        scale: the step size; the largest one where channels have their own.
        first: the first bin, counted from the bin of zero.
        width: steps to a bin; 1 up to 8 bits.
        counts: elements of each bin, without clipped ones.
        below, above: clipped elements at each end.
        zeros, vanished: elements that are exactly zero, and others that are rounded to zero; both
            count in the bin of zero, too.

    Example:
        >>> found = Histogram(0.5, -1, 1, np.array([1, 4, 0, 2]), 0, 1, zeros=3, vanished=1)
        >>> found.centres.tolist()
        [-0.5, 0.0, 0.5, 1.0]
    """

    scale: float
    first: int
    width: int
    counts: np.ndarray
    below: int
    above: int
    zeros: int
    vanished: int

    @property
    def centres(self) -> np.ndarray:
        """The value in the middle of each bin."""
        return (self.first + np.arange(self.counts.size)) * self.width * self.scale

    def percent(self, elements: int) -> float:
        """A number of elements as a share of all of them."""
        return 100 * elements / (int(self.counts.sum()) + self.below + self.above)


def look_on_grid(x: jax.Array, grid: Grid) -> State:
    """The state of one tensor; its first and last bin hold what is clipped."""
    x = x.astype(wide_dtype(x.dtype))
    steps = jnp.round(x / grid.scale)
    width, extent = (size(grid.highest - grid.lowest) for size in (_width, _extent))
    bins = jnp.clip(jnp.floor(steps / width + 0.5), -extent, extent) + (extent + 1)
    bins = jnp.where(steps < grid.lowest - grid.zero, 0, bins)
    bins = jnp.where(steps > grid.highest - grid.zero, 2 * extent + 2, bins)
    counts = jnp.zeros(2 * extent + 3, jnp.int32).at[bins.astype(jnp.int32)].add(1)
    return {
        "zeros": jnp.sum((x == 0).astype(x.dtype)),
        "vanished": jnp.sum(((x != 0) & (steps == 0)).astype(x.dtype)),
        "signal": jnp.sum(jnp.square(x)),
        "noise": jnp.sum(jnp.square(x - snap(x, grid))),
        "bins": counts.astype(x.dtype),
        "scale": jnp.max(grid.scale),
        "zero_low": jnp.min(grid.zero),
        "zero_high": jnp.max(grid.zero),
        "lowest": jnp.asarray(grid.lowest, x.dtype),
        "highest": jnp.asarray(grid.highest, x.dtype),
    }


def joined(old: Mapping[str, np.ndarray], new: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state of two batches as one, in float64; NaN stands for a branch that was not taken."""
    out = {}
    for key, value in new.items():
        wide = np.asarray(value, np.float64)
        if key in SUMS:
            out[key] = old.get(key, 0.0) + np.nan_to_num(wide)
        else:
            out[key] = np.fmax(old.get(key, np.nan), wide)
    return out


def histogram_of(state: Mapping[str, np.ndarray]) -> Histogram:
    """The histogram over the steps that lie within the grid of a state."""
    steps = int(state["highest"] - state["lowest"])
    width, extent = _width(steps), _extent(steps)
    reach = state["lowest"] - state["zero_high"], state["highest"] - state["zero_low"]
    first, last = (int(np.floor(end / width + 0.5)) for end in reach)
    counts = state["bins"][first + extent + 1 : last + extent + 2].astype(int)
    ends = int(state["bins"][0]), int(state["bins"][-1])
    zeros, vanished = int(state["zeros"]), int(state["vanished"])
    return Histogram(float(state["scale"]), first, width, counts, *ends, zeros, vanished)


def cells_of(state: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """Scale, zero point, percent under half a step, percent clipped, SQNR of the tensor itself."""
    zero = int(state["zero_low"]) if state["zero_low"] == state["zero_high"] else None
    lost = state["vanished"], state["bins"][0] + state["bins"][-1]
    vanished, clipped = (float(100 * part / np.sum(state["bins"])) for part in lost)
    sqnr = decibel(float(state["signal"]), float(state["noise"]))
    return float(state["scale"]), zero, vanished, clipped, sqnr


def _width(steps: int) -> int:
    return max((steps + 2) >> _FINEST, 1)


def _extent(steps: int) -> int:
    return steps // _width(steps) + 1
