"""The int8 simulation: the function re-evaluated with every quantizer in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.errors import CalibrationError, closest
from flaxcle.jaxpr import Actions, Op, Program, Result, computed, trace
from flaxcle.paths import PyTree
from flaxcle.quantize.calibrate import Calibration
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.grid import make_grid, snap
from flaxcle.quantize.plan import Plan, Quantizer, make_plan
from flaxcle.quantize.weights import snap_weight


def fake_quant(
    fn: Callable[..., Any], config: QuantConfig, calibration: Calibration
) -> Callable[..., Any]:
    """The function as an integer accelerator computes it, simulated in float.

    Every operand of a convolution, matrix product or residual add, the inputs and the outputs
    are rounded to their integer grid, `x -> (clip(round(x/s) + z) - z) * s`; biases and
    accumulators stay in float. Gradients pass straight through the rounding and stop where a
    value is clipped (Bengio et al. 2013, arXiv:1308.3432), so that the result can be trained.

    Args:
        fn: any function `fn(params, *inputs)`; jit, remat, scan, cond and custom derivatives
            inside are kept. The body of a `while_loop` stays in float.
        config: bits, granularity, symmetry, and the observer of the weights.
        calibration: the ranges of the activations, from `calibrate` on the same function.

    Returns:
        `qfn(params, *inputs)` with the outputs of `fn`; jit it for speed. Any batch size.

    Raises:
        CalibrationError: (when called) the calibration belongs to another function.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"]
        >>> params, config = {"kernel": jnp.array([[1.0], [0.1]])}, fc.QuantConfig(weight_bits=2)
        >>> calibration = fc.calibrate(fn, params, [jnp.eye(2)], config)
        >>> fc.fake_quant(fn, config, calibration)(params, jnp.eye(2)).ravel().tolist()
        [1.0, 0.0]

    Source: Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295, section 2.
    """

    def quantized(params: Any, *inputs: Any) -> Any:
        program = trace(fn, params, *inputs)
        plan = make_plan(program)
        check_names(plan, calibration)
        ranges = ranges_of(calibration)
        return program.unflatten(run_quantized(program, plan, params, inputs, config, ranges)[0])

    return quantized


def run_quantized(
    program: Program,
    plan: Plan,
    params: PyTree,
    inputs: tuple[Any, ...],
    config: QuantConfig,
    feed: Mapping[str, Any],
    actions: Actions | None = None,
) -> Result:
    """The program with every quantizer in its place, and with further actions at other ops.

    A flag `'<quantizer>:on'` in the feed, a boolean scalar, switches that quantizer on or off.
    """
    leaves, tree = jax.tree.flatten(inputs)
    rounded = jax.tree.unflatten(tree, _ends(plan.inputs, leaves, config, feed))
    done = {q.name for q in plan.inputs if q is not None}
    snaps = {op: _Snap(operands, config, done) for op, operands in plan.at.items()}
    outputs, taps = program.run(params, rounded, {**snaps, **(actions or {})}, feed)
    return Result(_ends(plan.outputs, outputs, config, feed), taps)


def check_names(plan: Plan, calibration: Calibration) -> None:
    """Raises CalibrationError when the function has quantizers that were not calibrated."""
    missing = [name for name in plan.activations() if name not in calibration.low]
    if missing:
        raise CalibrationError(
            f"{len(missing)} quantizers of this function have no calibrated range",
            where=f"the first is {missing[0]!r}",
            then=f"calibrate the same function; ranges exist for "
            f"{closest(missing[0], calibration.low) or 'nothing'}, ...",
        )


def ranges_of(calibration: Calibration) -> dict[str, Any]:
    """The calibrated ranges as the feed of the quantizing actions."""
    low = {f"{name}:low": value for name, value in calibration.low.items()}
    return low | {f"{name}:high": value for name, value in calibration.high.items()}


class _Snap:
    """Action: round the op's operands to their grids, then run it.

    The quantizers in `done` are left out: the network's inputs are rounded at the door.
    """

    def __init__(
        self, operands: Mapping[int, Quantizer], config: QuantConfig, done: set[str]
    ) -> None:
        self.operands = {k: q for k, q in operands.items() if q.name not in done}
        self.config = config
        names = [q.name for q in self.operands.values() if not q.weight]
        self.feeds = tuple(f"{name}:{end}" for name in names for end in ("low", "high"))

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        rounded = list(operands)
        for k, quantizer in self.operands.items():
            rounded[k] = _snapped(jnp.asarray(operands[k]), quantizer, self.config, feed)
        return computed(op, *rounded), {}


def _ends(ends: Any, arrays: Any, config: QuantConfig, feed: Mapping[str, Any]) -> list[Any]:
    pairs = zip(ends, arrays, strict=True)
    return [x if q is None else _snapped(jnp.asarray(x), q, config, feed) for q, x in pairs]


def _snapped(
    x: jax.Array, quantizer: Quantizer, config: QuantConfig, feed: Mapping[str, Any]
) -> jax.Array:
    if quantizer.weight:
        rounded = snap_weight(x, config, quantizer.channel_axes)
    else:
        rounded = _snap_activation(x, quantizer, config, feed)
    on = feed.get(f"{quantizer.name}:on")
    return rounded if on is None else jnp.where(on, rounded, x)


def _snap_activation(
    x: jax.Array, quantizer: Quantizer, config: QuantConfig, feed: Mapping[str, Any]
) -> jax.Array:
    if config.act_bits is None:
        return x
    low, high = feed[f"{quantizer.name}:low"], feed[f"{quantizer.name}:high"]
    return snap(x, make_grid(low, high, config.act_bits, symmetric=config.act_symmetric))
