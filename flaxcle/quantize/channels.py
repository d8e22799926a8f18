"""The magnitude of each channel of what a weight is multiplied with, over the calibration data.

    peak[c] = max |x[..., c]|        mean[c] = mean |x[..., c]|

over everything but the positions of the weight that the input runs along: the axes that are
summed over, and those of experts and layers. A grouped convolution reads other inputs for other
outputs, so its channels lie along (in, out) together. The invariant: what is recorded has the
shape of the weight along `axes`, and a weight whose readers differ in their axes has no record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.jaxpr import Op
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.paths import wide_dtype
from flaxcle.quantize.flow import Fact, Flow
from flaxcle.quantize.plan import Plan

State = dict[str, jax.Array]
Ends = tuple[jax.Array, jax.Array]


@partial(jax.tree_util.register_dataclass, data_fields=("peak", "mean"), meta_fields=("axes",))
@dataclass(frozen=True)
class ChannelRange:
    """How large the input of a weight is in each of its channels.

    Attributes:
        peak: the largest magnitude over the data, float32, shaped like the weight along `axes`.
        mean: the mean magnitude.
        axes: axes of the weight, ascending.

    Example:
        >>> ChannelRange(jnp.array([8.0, 1.0]), jnp.array([2.0, 0.5]), (0,)).peak.tolist()
        [8.0, 1.0]
    """

    peak: jax.Array
    mean: jax.Array
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Reader:
    """A contraction of data with a view of a leaf.

    Attributes:
        name: unique among the readers.
        leaf: path of the weight.
        operand: number of the data's operand.
        dims: dimensions of the data whose channels count.
        axes: for each of them the axis of the leaf.
        loops: per enclosing scan the axis of the leaf that it runs along, or None.
        groups: of a convolution; with more than one, `dims` is its feature dimension, and `axes`
            are the leaf's axes of inputs (if it has one) and outputs.
        fan: number of outputs of each group.
    """

    name: str
    leaf: str
    operand: int
    dims: tuple[int, ...]
    axes: tuple[int, ...]
    loops: tuple[int | None, ...]
    groups: int = 1
    fan: int = 1

    @property
    def leaf_axes(self) -> tuple[int, ...]:
        """The axes of the record, in the order in which they are observed; loops first."""
        return (*(axis for axis in self.loops if axis is not None), *self.axes)

    def look(self, x: jax.Array) -> tuple[State, Ends]:
        """The state of one batch, on `axes`, and the smallest and the largest value of all.

        The ends of all come from those of the channels, as an activation is slow to read. The
        barrier is there since XLA makes two reductions in a row one that reads it once more.
        """
        x = x.astype(wide_dtype(x.dtype))
        rest = tuple(k for k in range(x.ndim) if k not in self.dims)
        count = np.prod([x.shape[k] for k in rest])
        low, high, total = jax.lax.optimization_barrier(
            (jnp.min(x, rest), jnp.max(x, rest), jnp.sum(jnp.abs(x), rest))
        )
        state = {
            "peak": self._along(jnp.maximum(jnp.abs(low), jnp.abs(high))),
            "total": self._along(total),
            "count": jnp.asarray(count, x.dtype),
        }
        return state, (jnp.min(low), jnp.max(high))

    def _along(self, values: jax.Array) -> jax.Array:
        """Values of the dimensions `dims`, ascending, in the order of `axes`."""
        if self.groups == 1:
            return values.transpose(np.argsort(np.argsort(self.dims)))
        each = jnp.repeat(values.reshape(self.groups, -1).T, self.fan, axis=1)
        return each if len(self.axes) == 2 else each.reshape(-1)


def find_readers(flow: Flow) -> dict[Op, Reader]:
    """The contractions of data with a weight, but for those that can't be recorded."""
    found: dict[Op, Reader] = {}
    for op in flow.ops:
        if op.primitive in CONTRACTIONS:
            reader = _reader(op, [flow[value] for value in op.inputs[:2]], len(found))
            if reader is not None and reader.axes:
                found[op] = reader
    axes: dict[str, set[tuple[int, ...]]] = {}
    for reader in found.values():
        axes.setdefault(reader.leaf, set()).add(tuple(sorted(reader.leaf_axes)))
    return {op: reader for op, reader in found.items() if len(axes[reader.leaf]) == 1}


def looked_at(plan: Plan, readers: Mapping[Op, Reader]) -> dict[Op, dict[int, str]]:
    """The activation quantizers by the op and operand where their tensor is observed.

    One op for a tensor that several read, with preference one that looks at its channels anyway.
    """
    places: dict[str, tuple[Op, int]] = {}
    for op, operands in plan.at.items():
        for k, quantizer in operands.items():
            if not quantizer.weight:
                known = op in readers and readers[op].operand == k
                places[quantizer.name] = (op, k) if known else places.get(quantizer.name, (op, k))
    found: dict[Op, dict[int, str]] = {op: {} for op in plan.at}
    for name, (op, k) in places.items():
        found[op][k] = name
    return found


def merge_channels(old: State, new: State) -> State:
    """The state after one more batch; NaN stands for a branch that was not taken."""
    total = {k: old[k] + jnp.nan_to_num(new[k]) for k in ("total", "count")}
    known = {k: jnp.where(jnp.isnan(old[k]), new[k], total[k]) for k in total}
    return {"peak": jnp.fmax(old["peak"], new["peak"]), **known}


def channel_ranges(
    readers: Sequence[Reader], states: Mapping[str, State]
) -> dict[str, ChannelRange]:
    """The records of all weights, over all readers and turns of loops that share one."""
    parts: dict[str, list[dict[str, np.ndarray]]] = {}
    for reader in readers:
        parts.setdefault(reader.leaf, []).append(_of_leaf(reader, states[reader.name]))
    axes = {reader.leaf: tuple(sorted(reader.leaf_axes)) for reader in readers}
    out = {}
    for leaf, seen in parts.items():
        peak = np.fmax.reduce([state["peak"] for state in seen])
        total, count = (sum(state[key] for state in seen) for key in ("total", "count"))
        mean = total / np.maximum(count, 1)
        single = jnp.float32
        out[leaf] = ChannelRange(jnp.asarray(peak, single), jnp.asarray(mean, single), axes[leaf])
    return out


def _of_leaf(reader: Reader, state: State) -> dict[str, np.ndarray]:
    """A state on the leaf's axes, ascending, over all turns of loops that share the leaf."""
    shared = tuple(k for k, axis in enumerate(reader.loops) if axis is None)
    order = np.argsort(reader.leaf_axes)
    found = {key: np.asarray(value) for key, value in state.items()}
    count = found["count"].reshape(found["count"].shape + (1,) * len(reader.axes))
    return {
        "peak": np.fmax.reduce(found["peak"], shared).transpose(order),
        "total": np.nansum(found["total"], shared).transpose(order),
        "count": np.nansum(count, shared).transpose(order),
    }


def _reader(op: Op, facts: Sequence[Fact], number: int) -> Reader | None:
    live = [k for k in (0, 1) if facts[k].dynamic]
    if len(live) != 1 or not jnp.issubdtype(op.inputs[live[0]].dtype, jnp.floating):
        return None
    fact, data = facts[1 - live[0]], live[0]
    if not fact.leaf or len(fact.view) != len(op.inputs[1 - data].shape):
        return None
    name = f"{fact.leaf}*{number}"
    if op.primitive == "conv_general_dilated":
        return _of_convolution(op, fact, data, name)
    pairs = [(k, fact.view[j]) for k, j in _matched(op, data)]
    kept = [(k, axis) for k, axis in pairs if axis is not None]
    dims, axes = tuple(k for k, _ in kept), tuple(axis for _, axis in kept)
    return Reader(name, fact.leaf, data, dims, axes, fact.loops)


def _matched(op: Op, data: int) -> Iterator[tuple[int, int]]:
    """Dimensions of the data and of the weight that a matrix product runs along together."""
    for dims in op.params["dimension_numbers"][::-1]:
        yield from zip(dims[data], dims[1 - data], strict=True)


def _of_convolution(op: Op, fact: Fact, data: int, name: str) -> Reader | None:
    numbers: Any = op.params["dimension_numbers"]
    if data != 0 or not fact.leaf or op.params["batch_group_count"] > 1:
        return None
    outs, ins = numbers.rhs_spec[:2]
    groups = op.params["feature_group_count"]
    fan = op.inputs[1].shape[outs] // groups
    into, out = fact.view[ins], fact.view[outs]
    several = op.inputs[1].shape[ins] > 1
    if (several and into is None) or (groups > 1 and out is None):
        return None
    axes = tuple(axis for axis in (into, out if groups > 1 else None) if axis is not None)
    dims = (numbers.lhs_spec[1],)
    return Reader(name, fact.leaf, data, dims, axes, fact.loops, groups, fan)
