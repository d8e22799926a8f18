"""Which bias a layer has: the leaf that is added along the output channels of a contraction.

    y = gain * (W x) + b        per-channel arithmetic with leaves and constants, then a leaf

A layer's own bias, or that of the BatchNorm behind it. The invariant: a leaf that runs along any
other axis of the result (a position embedding) is no bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from flaxcle.jaxpr import Op
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.quantize.flow import Fact, Flow, moved
from flaxcle.quantize.plan import channel_axes

_ELEMENTWISE = ("add", "sub", "mul", "div", "convert_element_type", "copy")


@dataclass(frozen=True)
class BiasAdd:
    """An op that adds a bias leaf to a layer's result.

    `axes[k]` is the dimension of the sum that runs along `leaf_axes[k]` of the leaf, `loops` the
    axis of the leaf that each enclosing scan runs along, or None.
    """

    name: str
    leaf: str
    axes: tuple[int, ...]
    leaf_axes: tuple[int, ...]
    loops: tuple[int | None, ...]

    def per_channel(self, reduce: Callable[..., jax.Array], out: jax.Array) -> jax.Array:
        """A statistic over everything but the bias's axes, in the leaf's order."""
        rest = tuple(k for k in range(out.ndim) if k not in self.axes)
        return reduce(out, rest).transpose(np.argsort(np.argsort(self.axes)))

    def spread(self, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Values in the leaf's order, shaped to meet a result of this shape."""
        extent = [shape[k] if k in self.axes else 1 for k in range(len(shape))]
        return values.transpose(np.argsort(self.axes)).reshape(extent)


def find_bias_adds(flow: Flow) -> dict[Op, BiasAdd]:
    """The ops that add a bias leaf along the output channels of a contraction."""
    channels: dict[int, frozenset[int]] = {}
    found: dict[Op, BiasAdd] = {}
    for op in flow.ops:
        if op.primitive in CONTRACTIONS:
            channels[id(op.outputs[0])] = _output_channels(op, flow)
            continue
        facts = [flow[value] for value in op.inputs]
        live = [k for k, fact in enumerate(facts) if fact.dynamic]
        carried = channels.get(id(op.inputs[live[0]])) if len(live) == 1 else None
        if not carried:
            continue
        channels[id(op.outputs[0])] = _kept_channels(op, live[0], carried)
        if op.primitive == "add":
            other = 1 - live[0]
            add = _bias_add(facts[other], op.inputs[other].shape, len(found))
            if add is not None and carried.issuperset(add.axes):
                found[op] = add
    return found


def _bias_add(bias: Fact, shape: tuple[int, ...], number: int) -> BiasAdd | None:
    """The bias by its axes of more than one position; None for what is no view of a leaf."""
    if not bias.leaf or len(bias.view) != len(shape):
        return None
    sized = zip(bias.view, shape, strict=True)
    placed = sorted((axis, k) for k, (axis, n) in enumerate(sized) if axis is not None and n != 1)
    axes, leaf_axes = tuple(k for _, k in placed), tuple(axis for axis, _ in placed)
    return BiasAdd(f"{bias.leaf}+{number}", bias.leaf, axes, leaf_axes, bias.loops)


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
