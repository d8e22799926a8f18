"""The int8 simulation: the function re-evaluated with every quantizer in its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.errors import CalibrationError, closest
from flaxcle.jaxpr import Op, trace
from flaxcle.quantize.calibrate import Calibration
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.grid import make_grid, snap
from flaxcle.quantize.observe import look, range_of
from flaxcle.quantize.plan import Plan, Quantizer, make_plan


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
        feed = ranges_of(calibration)
        leaves, tree = jax.tree.flatten(inputs)
        snapped = jax.tree.unflatten(tree, _ends(plan.inputs, leaves, config, feed))
        result = program.run(params, snapped, quantizing(plan, config), feed)
        return program.unflatten(_ends(plan.outputs, result.outputs, config, feed))

    return quantized


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


def quantizing(plan: Plan, config: QuantConfig) -> dict[Op, Snap]:
    """The action of each op that has quantizers."""
    done = {q.name for q in plan.inputs if q is not None}
    return {op: Snap(operands, config, done) for op, operands in plan.at.items()}


class Snap:
    """Action: round the op's operands to their grids, then run it."""

    def __init__(
        self, operands: Mapping[int, Quantizer], config: QuantConfig, done: set[str]
    ) -> None:
        """Leaves out the quantizers in `done` (the network's inputs are rounded at the door)."""
        self.operands = {k: q for k, q in operands.items() if q.name not in done}
        self.config = config
        names = [q.name for q in self.operands.values() if not q.weight]
        self.feeds = tuple(f"{name}:{end}" for name in names for end in ("low", "high"))

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        """Runs the op on rounded operands; no taps."""
        rounded = list(operands)
        for k, quantizer in self.operands.items():
            x = jnp.asarray(operands[k])
            if quantizer.weight:
                rounded[k] = snap_weight(x, self.config, quantizer.channel_axes)
            else:
                rounded[k] = _snap_activation(x, quantizer, self.config, feed)
        return op.bind(*rounded), {}


def _ends(ends: Any, arrays: Any, config: QuantConfig, feed: Mapping[str, Any]) -> list[Any]:
    pairs = zip(ends, arrays, strict=True)
    return [x if q is None else _snap_activation(jnp.asarray(x), q, config, feed) for q, x in pairs]


def _snap_activation(
    x: jax.Array, quantizer: Quantizer, config: QuantConfig, feed: Mapping[str, Any]
) -> jax.Array:
    if config.act_bits is None:
        return x
    low, high = feed[f"{quantizer.name}:low"], feed[f"{quantizer.name}:high"]
    return snap(x, make_grid(low, high, config.act_bits, symmetric=config.act_symmetric))


def snap_weight(w: jax.Array, config: QuantConfig, channel_axes: tuple[int, ...]) -> jax.Array:
    """A weight on its own grid: one scale, or one per position along `channel_axes`."""
    bits = config.weight_bits
    if bits is None:
        return w
    wide = jax.lax.stop_gradient(w).astype(jnp.promote_types(w.dtype, jnp.float32))
    kept = channel_axes if config.weight_granularity == "per_channel" else ()
    rest = tuple(k for k in range(w.ndim) if k not in kept)
    if config.weight_observer == "minmax":
        low, high = jnp.min(wide, rest, keepdims=True), jnp.max(wide, rest, keepdims=True)
    else:
        low, high = _observed(wide, kept, rest, config, bits)
    return snap(w, make_grid(low, high, bits, symmetric=config.weight_symmetric))


def _observed(
    w: jax.Array, kept: tuple[int, ...], rest: tuple[int, ...], config: QuantConfig, bits: int
) -> tuple[jax.Array, jax.Array]:
    """Ranges by histogram, one row per channel."""
    observer = config.weight_observer
    rows = jnp.transpose(w, (*kept, *rest)).reshape(-1, math.prod(w.shape[k] for k in rest))
    state = jax.vmap(lambda row: look(row, observer))(rows)
    found = range_of(state, observer, config, bits, symmetric=config.weight_symmetric)
    shape = tuple(n if k in kept else 1 for k, n in enumerate(w.shape))
    low, high = (side.reshape(shape) for side in found)
    return low, high
