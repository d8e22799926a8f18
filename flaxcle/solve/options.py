"""The options of `solve`, checked once.

The invariant: none of them is static under `jit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from flaxcle.errors import CalibrationError, ConfigError

LARGEST_SCALE = 2.0**60  # two of them on one leaf still make a finite float32 factor
FLOOR = -30.0  # log2 of the smallest product of ranges that counts, relative to its group
SMALLEST_TOL = 1e-6  # what float32 logarithms can tell apart


class Magnitude(Protocol):
    """How large the input of a weight is: `peak` has the weight's shape along `axes`."""

    @property
    def peak(self) -> Any:
        """The magnitude of each channel."""
        ...

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes of the weight, ascending."""
        ...


class HasChannels(Protocol):
    """What `solve` reads of a calibration: leaf path -> magnitude of its input."""

    @property
    def channels(self) -> Mapping[str, Magnitude]:
        """The magnitudes."""
        ...


Ranges = Literal["weights"] | HasChannels


class Options(NamedTuple):
    """See `solve`."""

    ranges: Any
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
        CalibrationError: no channels were recorded.
    """
    _check_ranges(options.ranges)
    _one_of("granularity", options.granularity, ("per_tensor", "per_channel"))
    check_alpha(options.alpha)
    _between("max_scale", options.max_scale, 1.0, LARGEST_SCALE)
    _between("tol", options.tol, SMALLEST_TOL, 1.0)
    if not isinstance(options.power_of_two, bool):
        raise _wrong("power_of_two", options.power_of_two, "True or False")
    sweeps = options.max_sweeps
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or sweeps < 1:
        raise _wrong("max_sweeps", sweeps, "a whole number from 1")
    return options


def check_alpha(alpha: Any) -> None:
    """Raises ConfigError unless it is a number from 0 to 1."""
    _between("alpha", alpha, 0.0, 1.0)


def magnitudes(ranges: Ranges) -> Mapping[str, Magnitude]:
    """The magnitudes that are known of the weights' inputs."""
    return {} if isinstance(ranges, str) else ranges.channels


def _check_ranges(ranges: Any) -> None:
    if isinstance(ranges, str) or not hasattr(ranges, "channels"):
        if ranges != "weights":
            value = ranges if isinstance(ranges, str) else type(ranges)
            raise _wrong("ranges", value, "'weights' or a Calibration")
    elif not ranges.channels:
        raise CalibrationError(
            "the calibration has recorded no input of a weight",
            where="its field channels is empty",
            then="calibrate again, or leave out ranges to balance by weights alone",
        )


def _one_of(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in accepted:
        raise _wrong(name, value, " or ".join(map(repr, accepted)))


def _between(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise _wrong(name, value, f"a number from {low:g} to {high:g}")


def _wrong(name: str, value: Any, accepted: str) -> ConfigError:
    return ConfigError(f"{name}={value!r} is not possible", then=f"pass {accepted}")
