"""Moving ranges: the simulation of int8 that also follows what its activations do.

    low  <- m low  + (1 - m) low of this batch,        high likewise, m = config.momentum

The invariant: the outputs are those of `fake_quant` with the ranges as they came in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.jaxpr import trace
from flaxcle.quantize.calibrate import Calibration
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.fake import check_names, ranges_of, run_quantized
from flaxcle.quantize.observe import look, range_of
from flaxcle.quantize.plan import make_plan


def track_ranges(
    fn: Callable[..., Any], config: QuantConfig, calibration: Calibration
) -> Callable[..., Any]:
    """`fake_quant` for a training loop in which the ranges follow the activations.

        low  <- m low + (1 - m) low of this batch,    high likewise,    m = config.momentum

    The range of a batch is what `config.act_observer` takes for it. The outputs are those of
    `fake_quant` with the ranges as they came in; the new ones are for the next step, and no
    gradient flows to them. The alternative is to learn the ranges: `fake_quant` has gradients for
    those in its `calibration`.

    Args:
        fn: any function `fn(params, *inputs)`.
        config: the arithmetic to simulate. `momentum=0.99` forgets a batch in some 100 steps.
        calibration: where to start from: `calibrate` on the same function.

    Returns:
        `tracked(params, *inputs)` with the outputs of `fn` and the next calibration. Its `low` and
        `high` have moved. A range stays where the batch did not reach it (in a branch not
        taken) and where the batch held NaN or infinity; `weights` and `channels` always stay.

    Raises:
        CalibrationError: (when called) the calibration belongs to another function.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn, config = lambda p, x: x @ p, fc.QuantConfig(momentum=0.75)
        >>> params = jnp.ones((2, 1))
        >>> calibration = fc.calibrate(fn, params, [jnp.ones((4, 2))], config)
        >>> _, calibration = fc.track_ranges(fn, config, calibration)(params, jnp.full((1, 2), 5.0))
        >>> float(calibration.high["input_0"])
        2.0

    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.1.
    """

    def tracked(params: Any, *inputs: Any) -> tuple[Any, Calibration]:
        program = trace(fn, params, *inputs)
        plan = make_plan(program)
        check_names(plan, calibration)
        ranges = ranges_of(calibration)
        watch = partial(_seen, config)
        outputs, taps = run_quantized(program, plan, params, inputs, config, ranges, look=watch)
        return program.unflatten(outputs), _moved(calibration, taps, config.momentum)

    return tracked


def _seen(config: QuantConfig, name: str, x: jax.Array) -> dict[str, Any]:
    """The range of one activation in one batch."""
    low, high = range_of(look(jax.lax.stop_gradient(x), config.act_observer), config)
    return {f"{name}:low": low, f"{name}:high": high}


def _moved(calibration: Calibration, taps: Mapping[str, Any], momentum: float) -> Calibration:
    def moved(end: str, old: Mapping[str, Any]) -> dict[str, Any]:
        new = {name: taps.get(f"{name}:{end}", value) for name, value in old.items()}
        return {name: _blend(value, new[name], momentum) for name, value in old.items()}

    low, high = moved("low", calibration.low), moved("high", calibration.high)
    return replace(calibration, low=low, high=high)


def _blend(old: Any, new: Any, momentum: float) -> jax.Array:
    """The moving average in the dtype of the old value, which stays where the new isn't finite."""
    old = jax.lax.stop_gradient(jnp.asarray(old))
    new = jnp.asarray(new, old.dtype)
    return jnp.where(jnp.isfinite(new), momentum * old + (1 - momentum) * new, old)
