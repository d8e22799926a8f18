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
from flaxcle.quantize.grid import Grid, make_grid, snap
from flaxcle.quantize.plan import Plan, Quantizer, make_plan
from flaxcle.quantize.weights import snap_weight

Look = Callable[[str, jax.Array], dict[str, Any]]


def ignore(name: str, x: jax.Array) -> dict[str, Any]:
    """Reports nothing of an activation."""
    return {}


def fake_quant(
    fn: Callable[..., Any], config: QuantConfig, calibration: Calibration
) -> Callable[..., Any]:
    """The function as an integer accelerator computes it, simulated in float.

    Every operand of a convolution, matrix product or residual add, the inputs and the outputs
    are rounded to their integer grid, `x -> (clip(round(x/s) + z) - z) * s`; biases and
    accumulators stay in float.

    The result can be trained. Gradients pass straight through the rounding and stop where a value
    is clipped (Bengio et al. 2013, arXiv:1308.3432); the range of a weight follows the weight.
    `calibration` is a pytree like any other: pass it as an argument of the loss, and `jax.grad`
    gives its ranges the gradients of LSQ, `round(x/s) - x/s` of the step `s` inside the grid and
    the integer at the end where a value is clipped. `track_ranges` moves them without gradients.

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

    Source: Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295, section 2;
    Esser et al. 2020, arXiv:1902.08153, eq. 3.
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
    look: Look = ignore,
) -> Result:
    """The program with every quantizer in its place, and with further actions at other ops.

    A flag `'<quantizer>:on'` in the feed, a boolean scalar, switches that quantizer on or off.
    `look` sees each activation before it is rounded, and returns the taps to report.
    """
    leaves, tree = jax.tree.flatten(inputs)
    rounded, first = _ends(plan.inputs, leaves, config, feed, look)
    done = {q.name for q in plan.inputs if q is not None}
    snaps = {op: _Snap(operands, config, done, look) for op, operands in plan.at.items()}
    actions = {**snaps, **(actions or {})}
    outputs, taps = program.run(params, jax.tree.unflatten(tree, rounded), actions, feed)
    outputs, last = _ends(plan.outputs, outputs, config, feed, look)
    return Result(outputs, first | taps | last)


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
        self, operands: Mapping[int, Quantizer], config: QuantConfig, done: set[str], look: Look
    ) -> None:
        self.operands = {k: q for k, q in operands.items() if q.name not in done}
        self.config, self.look = config, look
        names = [q.name for q in self.operands.values() if not q.weight]
        self.feeds = tuple(f"{name}:{end}" for name in names for end in ("low", "high"))

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        rounded, taps = list(operands), {}
        for k, quantizer in self.operands.items():
            x = jnp.asarray(operands[k])
            if not quantizer.weight:
                taps |= self.look(quantizer.name, x)
            rounded[k] = _snapped(x, quantizer, self.config, feed)
        return computed(op, *rounded), taps


def _ends(ends: Any, arrays: Any, config: QuantConfig, feed: Mapping[str, Any], look: Look) -> Any:
    """The network's inputs or outputs on their grids, and the taps."""
    rounded, taps = list(arrays), {}
    for k, quantizer in enumerate(ends):
        if quantizer is not None:
            x = jnp.asarray(arrays[k])
            taps |= look(quantizer.name, x)
            rounded[k] = _snapped(x, quantizer, config, feed)
    return rounded, taps


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
    return x if config.act_bits is None else snap(x, activation_grid(quantizer, config, feed))


def activation_grid(quantizer: Quantizer, config: QuantConfig, feed: Mapping[str, Any]) -> Grid:
    """The grid of an activation that is not left in float."""
    assert config.act_bits is not None
    low, high = feed[f"{quantizer.name}:low"], feed[f"{quantizer.name}:high"]
    return make_grid(low, high, config.act_bits, symmetric=config.act_symmetric)
