"""The options: what is accepted, and the texts that refuse the rest."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from flaxcle import QuantConfig
from flaxcle.errors import ConfigError

BITS = "an integer from 2 to 16, or None for float"
ACT = "one of ('minmax', 'moving_average', 'percentile', 'mse')"


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("weight_bits", 1, BITS),
        ("act_bits", 17, BITS),
        ("act_bits", 0, BITS),
        ("weight_bits", 8.0, BITS),
        ("weight_bits", True, BITS),
        ("act_bits", "8", BITS),
        ("weight_granularity", "per_axis", "one of ('per_tensor', 'per_channel')"),
        ("weight_observer", "moving_average", "one of ('minmax', 'percentile', 'mse')"),
        ("act_observer", "entropy", ACT),
        ("percentile", 50.0, "a percentage above 50 and up to 100"),
        ("percentile", 100.5, "a percentage above 50 and up to 100"),
        ("percentile", float("nan"), "a percentage above 50 and up to 100"),
        ("momentum", 1.0, "a number from 0 up to, not including, 1"),
        ("momentum", -0.1, "a number from 0 up to, not including, 1"),
    ],
)
def test_refused_values_are_named_with_what_is_accepted(
    field: str, value: Any, accepted: str
) -> None:
    with pytest.raises(ConfigError) as error:
        QuantConfig(**{field: value})
    assert (
        str(error.value) == f"QuantConfig.{field} can't be {value!r}. What to do: pass {accepted}."
    )


@pytest.mark.parametrize("bits", [2, 16, np.int64(8), None])
def test_accepted_widths(bits: Any) -> None:
    assert QuantConfig(weight_bits=bits, act_bits=bits).weight_bits == bits


def test_is_frozen_hashable_and_keyword_only() -> None:
    config = QuantConfig(weight_bits=4)
    assert {config: 1}[QuantConfig(weight_bits=4)] == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.weight_bits = 8  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        QuantConfig(8)  # type: ignore[misc]


def test_can_be_a_static_argument() -> None:
    width = jax.jit(lambda x, config: x * config.act_bits, static_argnums=1)
    assert float(width(2.0, QuantConfig(act_bits=4))) == 8.0


def test_default_is_w8a8_per_tensor() -> None:
    config = QuantConfig()
    assert (config.weight_bits, config.act_bits) == (8, 8)
    assert (config.weight_granularity, config.weight_symmetric) == ("per_tensor", True)
    assert (config.act_observer, config.act_symmetric) == ("minmax", False)
