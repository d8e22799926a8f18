"""The float network with a look at every tensor that a quantizer would round.

Weights need no data, so they are looked at in a run of their own, of which the compiler leaves
nothing but them. The invariant: a tensor with several readers is looked at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.analysis.grids import State, look_on_grid
from flaxcle.jaxpr import Op, Program, Result, computed, trace
from flaxcle.paths import PyTree, wide_dtype
from flaxcle.quantize import QuantConfig
from flaxcle.quantize.grid import make_grid
from flaxcle.quantize.plan import Plan, Quantizer, make_plan
from flaxcle.quantize.weights import weight_range

Ranges = Mapping[str, Any]


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
            states[quantizer.name] = _act_state(jnp.asarray(x), quantizer, config, ranges)
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
                state = _act_state(x, quantizer, self.config, feed)
            taps |= {f"{quantizer.name}:{key}": value for key, value in state.items()}
        return computed(op, *operands), taps


def _weight_state(w: jax.Array, quantizer: Quantizer, config: QuantConfig) -> State:
    assert config.weight_bits is not None
    axes = quantizer.channel_axes
    low, high = weight_range(w, config, axes)
    grid = make_grid(low, high, config.weight_bits, symmetric=config.weight_symmetric)
    rest = tuple(k for k in range(w.ndim) if k not in axes)
    rows = w.astype(wide_dtype(w.dtype)).transpose(*axes, *rest)
    return look_on_grid(w, grid) | {"rows": rows.reshape(prod(w.shape[k] for k in axes), -1)}


def _act_state(
    x: jax.Array, quantizer: Quantizer, config: QuantConfig, feed: Mapping[str, Any]
) -> State:
    assert config.act_bits is not None
    low, high = feed[f"{quantizer.name}:low"], feed[f"{quantizer.name}:high"]
    return look_on_grid(x, make_grid(low, high, config.act_bits, symmetric=config.act_symmetric))
