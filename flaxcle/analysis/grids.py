"""A tensor against its integer grid: what is clipped, what vanishes, how the rest is spread.

    steps = round(x / scale)          an integer, counted from zero
    clipped      steps outside of the grid
    vanished     x != 0 and steps == 0: under half a step

The state of a tensor is sums and counts, so that batches add up. The invariant: `below`, `above`
and the counts of the bins make up all the elements.
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
SUMS = ("count", "zeros", "vanished", "below", "above", "signal", "noise", "bins")
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
        zeros: elements that are exactly zero; they count in the bin of zero, too.

    Example:
        >>> Histogram(0.5, -1, 1, np.array([1, 4, 0, 2]), 0, 1, 3).centres.tolist()
        [-0.5, 0.0, 0.5, 1.0]
    """

    scale: float
    first: int
    width: int
    counts: np.ndarray
    below: int
    above: int
    zeros: int

    @property
    def centres(self) -> np.ndarray:
        """The value in the middle of each bin."""
        return (self.first + np.arange(self.counts.size)) * self.width * self.scale


def look_on_grid(x: jax.Array, grid: Grid) -> State:
    """The state of one tensor."""
    x = x.astype(wide_dtype(x.dtype))
    steps = jnp.round(x / grid.scale)
    below, above = steps < grid.lowest - grid.zero, steps > grid.highest - grid.zero
    sums = {
        "count": jnp.ones_like(x),
        "zeros": x == 0,
        "vanished": (x != 0) & (steps == 0),
        "below": below,
        "above": above,
        "signal": jnp.square(x),
        "noise": jnp.square(x - snap(x, grid)),
    }
    found = {key: jnp.sum(value.astype(x.dtype)) for key, value in sums.items()}
    width, extent = (size(grid.highest - grid.lowest) for size in (_width, _extent))
    bins = jnp.clip(jnp.floor(steps / width + 0.5) + extent, 0, 2 * extent).astype(jnp.int32)
    kept = (~(below | above)).astype(jnp.int32)
    counts = jnp.zeros(2 * extent + 1, jnp.int32).at[bins].add(kept)
    return found | {
        "bins": counts.astype(x.dtype),
        "scale": jnp.max(grid.scale),
        "zero_low": jnp.min(grid.zero),
        "zero_high": jnp.max(grid.zero),
        "lowest": jnp.asarray(grid.lowest, x.dtype),
        "highest": jnp.asarray(grid.highest, x.dtype),
    }


def joined(old: Mapping[str, np.ndarray], new: State) -> dict[str, np.ndarray]:
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
    ends = state["lowest"] - state["zero_high"], state["highest"] - state["zero_low"]
    first, last = (int(np.floor(end / width + 0.5)) for end in ends)
    counts = state["bins"][first + extent : last + extent + 1].astype(int)
    below, above, zeros = (int(state[key]) for key in ("below", "above", "zeros"))
    return Histogram(float(state["scale"]), first, width, counts, below, above, zeros)


def cells_of(state: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
    """Scale, zero point, percent under half a step, percent clipped, SQNR of the tensor itself."""
    zero = int(state["zero_low"]) if state["zero_low"] == state["zero_high"] else None
    clipped = state["below"] + state["above"]
    vanished, lost = (float(100 * part / state["count"]) for part in (state["vanished"], clipped))
    sqnr = decibel(float(state["signal"]), float(state["noise"]))
    return float(state["scale"]), zero, vanished, lost, sqnr


def _width(steps: int) -> int:
    return max((steps + 2) >> _FINEST, 1)


def _extent(steps: int) -> int:
    return steps // _width(steps) + 1
