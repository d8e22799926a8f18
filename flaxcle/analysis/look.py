"""The float network with a look at every tensor that a quantizer would round.

The invariant: a tensor with several readers is looked at once, and what stays in float is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.analysis.grids import State, look_on_grid
from flaxcle.jaxpr import Op, computed, trace
from flaxcle.paths import PyTree, wide_dtype
from flaxcle.quantize import QuantConfig
from flaxcle.quantize.grid import make_grid
from flaxcle.quantize.plan import Quantizer, make_plan
from flaxcle.quantize.weights import weight_range

QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def looked(
    fn: Callable[..., Any],
    config: QuantConfig,
    params: PyTree,
    ranges: Mapping[str, Any],
    inputs: tuple[Any, ...],
) -> dict[str, State]:
    """The state of every quantized tensor on one batch, by quantizer."""
    program = trace(fn, params, *inputs)
    plan = make_plan(program)
    seen = {q.name for q in plan.inputs if q is not None}
    looks = {op: _Look(operands, config, seen) for op, operands in plan.at.items()}
    outputs, taps = program.run(params, inputs, looks, ranges)
    states: dict[str, State] = {}
    for tap, value in taps.items():
        name, _, key = tap.rpartition(":")
        states.setdefault(name, {})[key] = value
    ends = zip([*plan.inputs, *plan.outputs], [*jax.tree.leaves(inputs), *outputs], strict=True)
    for quantizer, x in ends:
        if quantizer is not None and config.act_bits is not None:
            states[quantizer.name] = _act_state(jnp.asarray(x), quantizer, config, ranges)
    return states


class _Look:
    """Action: run the op and report the states of its operands that no other op has reported."""

    def __init__(
        self, operands: Mapping[int, Quantizer], config: QuantConfig, seen: set[str]
    ) -> None:
        self.config = config
        self.operands: dict[int, Quantizer] = {}
        for k, quantizer in operands.items():
            bits = config.weight_bits if quantizer.weight else config.act_bits
            if bits is not None and quantizer.name not in seen:
                self.operands[k] = quantizer
                seen.add(quantizer.name)
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
    low, high = weight_range(w, config, quantizer.channel_axes)
    grid = make_grid(low, high, config.weight_bits, symmetric=config.weight_symmetric)
    wide = w.astype(wide_dtype(w.dtype))
    rest = tuple(k for k in range(w.ndim) if k not in quantizer.channel_axes)
    rows = wide.transpose(*quantizer.channel_axes, *rest)
    rows = rows.reshape(*rows.shape[: len(quantizer.channel_axes)], -1)
    five = jnp.quantile(rows, jnp.asarray(QUARTILES, wide.dtype), axis=-1)
    return look_on_grid(w, grid) | {"five": five.reshape(len(QUARTILES), -1).T}


def _act_state(
    x: jax.Array, quantizer: Quantizer, config: QuantConfig, feed: Mapping[str, Any]
) -> State:
    assert config.act_bits is not None
    low, high = feed[f"{quantizer.name}:low"], feed[f"{quantizer.name}:high"]
    return look_on_grid(x, make_grid(low, high, config.act_bits, symmetric=config.act_symmetric))
