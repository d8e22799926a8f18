"""The float network with a look at every tensor that a quantizer would round.

Weights need no data, so they are looked at in a run of their own, of which the compiler leaves
nothing but them. The invariant: a tensor with several readers is looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.analysis.grids import State, look_on_grid
from flaxcle.jaxpr import Op, Program, Result, computed, trace
from flaxcle.paths import PyTree, wide_dtype
from flaxcle.quantize import Calibration, QuantConfig, calibrate
from flaxcle.quantize.fake import activation_grid, check_names
from flaxcle.quantize.plan import Plan, Quantizer, make_plan
from flaxcle.quantize.weights import weight_grid
from flaxcle.ranges import rest_of

Ranges = Mapping[str, Any]


def places(
    fn: Callable[..., Any],
    params: PyTree,
    data: Sequence[tuple[Any, ...]],
    config: QuantConfig,
    calibration: Calibration | None,
) -> tuple[Plan, Calibration]:
    """The quantizers, and the ranges of their activations, from the same data when not given.

    Raises:
        CalibrationError: the calibration belongs to another function.
    """
    if calibration is None:
        calibration = calibrate(fn, params, data, config)
    plan = make_plan(trace(fn, params, *data[0]))
    check_names(plan, calibration)
    return plan, calibration


def weight_states(
    fn: Callable[..., Any],
    config: QuantConfig,
    params: PyTree,
    ranges: Ranges,
    inputs: tuple[Any, ...],
) -> dict[str, State]:
    """The state of every quantized weight, with its entries as `rows`, one for each channel."""
    program = trace(fn, params, *inputs)
    return _states(_taps(program, make_plan(program), config, params, ranges, inputs, True).taps)


def activation_states(
    fn: Callable[..., Any],
    config: QuantConfig,
    params: PyTree,
    ranges: Ranges,
    inputs: tuple[Any, ...],
) -> dict[str, State]:
    """The state of every quantized activation on one batch."""
    program = trace(fn, params, *inputs)
    plan = make_plan(program)
    outputs, taps = _taps(program, plan, config, params, ranges, inputs, False)
    states = _states(taps)
    ends = zip([*plan.inputs, *plan.outputs], [*jax.tree.leaves(inputs), *outputs], strict=True)
    for quantizer, x in ends:
        if quantizer is not None:
            grid = activation_grid(quantizer, config, ranges)
            states[quantizer.name] = look_on_grid(jnp.asarray(x), grid)
    return states


def _taps(
    program: Program,
    plan: Plan,
    config: QuantConfig,
    params: PyTree,
    ranges: Ranges,
    inputs: tuple[Any, ...],
    weights: bool,
) -> Result:
    """The run of the float network that looks at weights, or at activations."""
    seen = {q.name for q in plan.quantizers().values() if q.weight != weights}
    seen |= {q.name for q in plan.inputs if q is not None}
    looks = {op: _Look(operands, config, seen) for op, operands in plan.at.items()}
    return program.run(params, inputs, looks, ranges)


def _states(taps: Mapping[str, Any]) -> dict[str, State]:
    states: dict[str, State] = {}
    for tap, value in taps.items():
        name, _, key = tap.rpartition(":")
        states.setdefault(name, {})[key] = value
    return states


class _Look:
    """Action: run the op and report the states of its operands that were not seen before."""

    def __init__(
        self, operands: Mapping[int, Quantizer], config: QuantConfig, seen: set[str]
    ) -> None:
        self.config = config
        self.operands = {k: q for k, q in operands.items() if q.name not in seen}
        seen |= {q.name for q in self.operands.values()}
        names = [q.name for q in self.operands.values() if not q.weight]
        self.feeds = tuple(f"{name}:{end}" for name in names for end in ("low", "high"))

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        taps: dict[str, Any] = {}
        for k, quantizer in self.operands.items():
            x = jnp.asarray(operands[k])
            if quantizer.weight:
                state = _weight_state(x, quantizer, self.config)
            else:
                state = look_on_grid(x, activation_grid(quantizer, self.config, feed))
            taps |= {f"{quantizer.name}:{key}": value for key, value in state.items()}
        return computed(op, *operands), taps


def _weight_state(w: jax.Array, quantizer: Quantizer, config: QuantConfig) -> State:
    axes = quantizer.channel_axes
    grid = weight_grid(w, config, axes)
    rest = rest_of(w.ndim, axes)
    rows = w.astype(wide_dtype(w.dtype)).transpose(*axes, *rest)
    return look_on_grid(w, grid) | {"rows": rows.reshape(prod(w.shape[k] for k in axes), -1)}
