"""The options of `solve`, checked once.

The invariant: none of them is static under `jit`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from flaxcle.errors import ConfigError

LARGEST_SCALE = 2.0**60  # two of them on one leaf still make a finite float32 factor
FLOOR = -30.0  # log2 of the smallest product of ranges that counts, relative to its group
SMALLEST_TOL = 1e-6  # what float32 logarithms can tell apart


class Options(NamedTuple):
    """See `solve`."""

    ranges: str
    alpha: float
    granularity: str
    power_of_two: bool
    max_scale: float
    tol: float
    max_sweeps: int

    @property
    def numbers(self) -> Numbers:
        """What the compiled solver takes as arguments, so that a new value compiles nothing."""
        return Numbers(
            np.float32(self.alpha),
            np.float32(math.log2(self.max_scale)),
            np.float32(math.log2(1 + self.tol)),
            np.int32(self.max_sweeps),
            np.bool_(self.power_of_two),
            np.float32(FLOOR),
        )


class Numbers(NamedTuple):
    """Options of the solver: `limit`, `tol` and `floor` are logarithms."""

    alpha: Any
    limit: Any
    tol: Any
    max_sweeps: Any
    power_of_two: Any
    floor: Any


def checked(options: Options) -> Options:
    """The options, when all are in their range.

    Raises:
        ConfigError: one is not.
    """
    _one_of("ranges", options.ranges, ("weights",))
    _one_of("granularity", options.granularity, ("per_tensor", "per_channel"))
    _between("alpha", options.alpha, 0.0, 1.0)
    _between("max_scale", options.max_scale, 1.0, LARGEST_SCALE)
    _between("tol", options.tol, SMALLEST_TOL, 1.0)
    if not isinstance(options.power_of_two, bool):
        raise _wrong("power_of_two", options.power_of_two, "True or False")
    sweeps = options.max_sweeps
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or sweeps < 1:
        raise _wrong("max_sweeps", sweeps, "a whole number from 1")
    return options


def _one_of(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in accepted:
        raise _wrong(name, value, " or ".join(map(repr, accepted)))


def _between(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise _wrong(name, value, f"a number from {low:g} to {high:g}")


def _wrong(name: str, value: Any, accepted: str) -> ConfigError:
    return ConfigError(f"{name}={value!r} is not possible", then=f"pass {accepted}")
