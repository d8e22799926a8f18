"""Bias correction: the mean error that quantization adds to each channel goes into its bias.

    b += E[y_float] - E[y_quantized]        per output channel, over the calibration data

Layer by layer, with all earlier layers quantized and corrected, in one pass: while the quantized
function runs on a batch, every bias add compares its mean with the float network's and takes the
difference at once. The invariant: only biases change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.jaxpr import Op, Program, trace
from flaxcle.paths import PyTree, named_leaves, replace_leaves
from flaxcle.quantize.calibrate import Batches, as_inputs, calibrate
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.fake import quantizing, ranges_of
from flaxcle.quantize.flow import CONTRACTIONS, Flow, follow, moved
from flaxcle.quantize.plan import channel_axes, make_plan

_ELEMENTWISE = ("add", "sub", "mul", "div", "convert_element_type", "copy")


@dataclass(frozen=True)
class _BiasAdd:
    """An op that adds a bias leaf to a layer's result; `axes[k]` carries the leaf's k-th axis."""

    name: str
    leaf: str
    axes: tuple[int, ...]


def correct_bias(
    fn: Callable[..., Any], params: PyTree, batches: Batches, config: QuantConfig
) -> PyTree:
    """Moves the mean quantization error of every layer into its bias.

    Per layer and output channel, `b += E[y_float] - E[y_quantized]`, where all earlier layers are
    already quantized and corrected. Biases are those that are added to the result of a
    convolution or matrix product (with only per-channel arithmetic in between): a layer's own
    bias, or that of the BatchNorm behind it. A layer without any bias keeps its error.

    Run it last, with the float params, on calibration data, never on test data. Use the corrected
    params with a calibration that was made before: the quantized network then has the float
    network's statistics. Not to be combined with learned rounding.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: float params, equalized before.
        batches: calibration inputs, or tuples of inputs; 250 images are plenty.
        config: the arithmetic that the network will run in.

    Returns:
        Params of the same structure and dtypes; only biases differ.

    Raises:
        CalibrationError: no batch.

    Example:
        >>> import jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: x @ p["kernel"] + p["bias"]
        >>> params = {"kernel": jnp.array([[1.0], [0.2]]), "bias": jnp.zeros(1)}
        >>> config = fc.QuantConfig(weight_bits=2, act_bits=None)
        >>> fc.correct_bias(fn, params, [jnp.ones((4, 2))], config)["bias"].round(3).tolist()
        [0.20000000298023224]

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix D (empirical).
    """
    data = [as_inputs(batch) for batch in batches]
    calibration = calibrate(fn, params, data, config)

    @jax.jit
    def means(params: PyTree, inputs: tuple[Any, ...]) -> dict[str, Any]:
        program = trace(fn, params, *inputs)
        adds = _bias_adds(program)
        actions = {op: _Mean(add) for op, add in adds.items()}
        return program.run(params, inputs, actions).taps

    @jax.jit
    def errors(params: PyTree, inputs: tuple[Any, ...], target: dict[str, Any]) -> dict[str, Any]:
        program = trace(fn, params, *inputs)
        plan = make_plan(program)
        fixes = {op: _Fix(add) for op, add in _bias_adds(program).items()}
        actions = quantizing(plan, config) | fixes
        feed = ranges_of(calibration) | {f"{name}:mean": mean for name, mean in target.items()}
        return program.run(params, inputs, actions, feed).taps

    target = _average(means(params, inputs) for inputs in data)
    shifts = _average(errors(params, inputs, target) for inputs in data)
    return _shifted(params, _owners(fn, params, data[0]), shifts)


def _owners(fn: Callable[..., Any], params: PyTree, inputs: tuple[Any, ...]) -> dict[str, str]:
    adds = _bias_adds(trace(fn, params, *inputs))
    return {add.name: add.leaf for add in adds.values()}


def _average(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    count = 0
    for sample in samples:
        count += 1
        total = {k: total[k] + v if total else v for k, v in sample.items()}
    return {name: value / count for name, value in total.items()}


def _shifted(params: PyTree, owners: Mapping[str, str], shifts: Mapping[str, Any]) -> PyTree:
    """Biases plus the mean of the shifts of all places where each is added."""
    leaves = named_leaves(params)
    by_leaf: dict[str, list[Any]] = {}
    for name, shift in shifts.items():
        shape = jnp.shape(leaves[owners[name]])
        shift = jnp.where(jnp.isnan(shift), 0, shift)
        extra = tuple(range(shift.ndim - len(shape))) if shift.size != math.prod(shape) else ()
        by_leaf.setdefault(owners[name], []).append(jnp.mean(shift, extra).reshape(shape))
    new = {
        path: leaves[path].astype(found[0].dtype) + sum(found[1:], found[0]) / len(found)
        for path, found in by_leaf.items()
    }
    return replace_leaves(params, new)


class _Mean:
    """Action: the mean of the sum over everything but the bias's axes."""

    feeds: tuple[str, ...] = ()

    def __init__(self, add: _BiasAdd) -> None:
        self.add = add

    def mean(self, out: jax.Array) -> jax.Array:
        rest = tuple(k for k in range(out.ndim) if k not in self.add.axes)
        wide = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        order = sorted(range(len(self.add.axes)), key=lambda k: self.add.axes[k])
        return jnp.transpose(jnp.mean(wide, rest), tuple(order.index(k) for k in range(len(order))))

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        (out,) = op.bind(*operands)
        return [out], {self.add.name: self.mean(out)}


class _Fix(_Mean):
    """Action: shift the sum so that its mean is the float network's; report the shift."""

    def __init__(self, add: _BiasAdd) -> None:
        super().__init__(add)
        self.feeds = (f"{add.name}:mean",)

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        (out,) = op.bind(*operands)
        shift = feed[f"{self.add.name}:mean"] - self.mean(out)
        order = sorted(range(len(self.add.axes)), key=lambda k: self.add.axes[k])
        shape = [out.shape[k] if k in self.add.axes else 1 for k in range(out.ndim)]
        aligned = jnp.transpose(shift, tuple(order)).reshape(shape)
        return [out + aligned.astype(out.dtype)], {self.add.name: shift}


def _bias_adds(program: Program) -> dict[Op, _BiasAdd]:
    """The ops that add a bias leaf along the output channels of a contraction."""
    flow = follow(program)
    channels: dict[int, frozenset[int]] = {}
    found: dict[Op, _BiasAdd] = {}
    for op in flow.ops:
        facts = [flow[value] for value in op.inputs]
        if op.primitive in CONTRACTIONS:
            channels[id(op.outputs[0])] = _output_channels(op, flow)
            continue
        live = next((k for k, fact in enumerate(facts) if fact.dynamic), None)
        if live is None or sum(fact.dynamic for fact in facts) != 1:
            continue
        carried = channels.get(id(op.inputs[live]))
        if not carried:
            continue
        channels[id(op.outputs[0])] = _kept_channels(op, live, carried)
        bias = facts[1 - live] if op.primitive == "add" else None
        if bias is not None and bias.leaf and bias.view:
            axes = _axes(bias.view)
            if axes is not None and set(axes) <= carried:
                name = f"{bias.leaf}+{sum(add.leaf == bias.leaf for add in found.values())}"
                found[op] = _BiasAdd(name, bias.leaf, axes)
    return found


def _axes(view: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """The dimensions that carry the leaf's axes, in the leaf's order."""
    placed = sorted((axis, k) for k, axis in enumerate(view) if axis is not None)
    return tuple(k for _, k in placed) or None


def _output_channels(op: Op, flow: Flow) -> frozenset[int]:
    weights = [k for k in (0, 1) if not flow[op.inputs[k]].dynamic]
    if len(weights) != 1:
        return frozenset()
    if op.primitive == "conv_general_dilated":
        return frozenset([op.params["dimension_numbers"].out_spec[1]] if weights == [1] else [])
    batch = len(op.params["dimension_numbers"][1][0])
    free = len(channel_axes(op, weights[0])) - batch
    rank = len(op.outputs[0].shape)
    start = rank - free if weights == [1] else batch
    return frozenset(range(start, start + free))


def _kept_channels(op: Op, live: int, carried: frozenset[int]) -> frozenset[int]:
    """Where the output channels are after the op; none when it is not per-channel arithmetic."""
    old, new = op.inputs[live].shape, op.outputs[0].shape
    if op.primitive in _ELEMENTWISE and old == new:
        return carried
    if op.primitive == "reshape":
        view = moved(tuple(range(len(old))), old, new)
        return frozenset(k for k, axis in enumerate(view) if axis in carried)
    if op.primitive == "transpose":
        order = op.params["permutation"]
        return frozenset(k for k, axis in enumerate(order) if axis in carried)
    return frozenset()
