"""How to quantize: one frozen, hashable set of options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flaxcle.errors import ConfigError

WeightObserver = Literal["minmax", "percentile", "mse"]
ActObserver = Literal["minmax", "moving_average", "percentile", "mse"]
Granularity = Literal["per_tensor", "per_channel"]

_CHOICES = {
    "weight_granularity": ("per_tensor", "per_channel"),
    "weight_observer": ("minmax", "percentile", "mse"),
    "act_observer": ("minmax", "moving_average", "percentile", "mse"),
}


@dataclass(frozen=True, kw_only=True)
class QuantConfig:
    """The integer arithmetic to simulate; the default is W8A8 per tensor.

    Attributes:
        weight_bits: 2 to 16, or `None` to leave weights in float.
        act_bits: 2 to 16, or `None` to leave activations in float.
        weight_granularity: one scale a tensor, or one an output channel.
        weight_symmetric: zero point 0 and `2**bits - 2` steps; else the grid spans min to max.
        act_symmetric: the same for activations, which always have one scale a tensor.
        weight_observer: how a weight's range is chosen: its extremes, the extremes after leaving
            `100 - percentile` percent out, or the clipping with the least squared error.
        act_observer: the same over the calibration data; `"moving_average"` averages the
            extremes of the batches with weight `momentum` on the past.
        percentile: kept share for the percentile observers, in percent.
        momentum: for the moving average and `track_ranges`, from 0 to 1 exclusive.

    Raises:
        ConfigError: a field is out of its range; the message lists what is accepted.

    Example:
        >>> QuantConfig(weight_bits=4, weight_granularity="per_channel").weight_bits
        4
    """

    weight_bits: int | None = 8
    act_bits: int | None = 8
    weight_granularity: Granularity = "per_tensor"
    weight_symmetric: bool = True
    act_symmetric: bool = False
    weight_observer: WeightObserver = "minmax"
    act_observer: ActObserver = "minmax"
    percentile: float = 99.99
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Refuses values outside the documented ranges."""
        for name in ("weight_bits", "act_bits"):
            bits = getattr(self, name)
            whole = bits in range(2, 17) and not isinstance(bits, bool | float)
            if bits is not None and not whole:
                _refuse(name, bits, "an integer from 2 to 16, or None for float")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                _refuse(name, getattr(self, name), f"one of {choices}")
        if not 50.0 < self.percentile <= 100.0:
            _refuse("percentile", self.percentile, "a percentage above 50 and up to 100")
        if not 0.0 <= self.momentum < 1.0:
            _refuse("momentum", self.momentum, "a number from 0 up to, not including, 1")


def _refuse(name: str, value: object, accepted: str) -> None:
    raise ConfigError(f"QuantConfig.{name} can't be {value!r}", then=f"pass {accepted}")
