"""The contractions that read a weight, and which part of the weight meets which channel.

The invariant: a leaf that is read in any other way as well has no readers at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flaxcle.jaxpr import Op, Program, Value
from flaxcle.jaxpr.frames import Frame, frames
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.jaxpr.layout import VIEWS, Layout, output_axes, pull
from flaxcle.ranges import rest_of

Channels = tuple[tuple[int, ...], Layout]


@dataclass(frozen=True, eq=False)
class Reader:
    """An op that contracts an activation with a leaf.

    Attributes:
        order: its place in the program.
        frame: the graph that the op is in.
        op, operand: the op, and which operand the activation is.
        axes: of the activation, along which its channels lie.
        leaf: path of the weight.
        sliced: how many of the loops around the op slice the leaf.
        inputs: the activation's channel at each position of a slice of the leaf.
        outputs: axes of a slice of the leaf along which the results lie.
    """

    order: int
    frame: Frame
    op: Op
    operand: int
    axes: tuple[int, ...]
    leaf: str
    sliced: int
    inputs: Layout
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """A name of its own."""
        return f"{self.leaf}:{self.order}"

    def channels(self, shape: tuple[int, ...]) -> np.ndarray:
        """The input channel at each position of the whole leaf, as an array that broadcasts."""
        within = shape[self.sliced :]
        kept = [size if axis in self.inputs.axes else 1 for axis, size in enumerate(within)]
        ids = np.asarray(self.inputs.index).reshape(kept)
        steps = np.arange(np.prod(shape[: self.sliced], dtype=int))
        steps = steps.reshape(*shape[: self.sliced], *(1,) * len(within))
        return steps * (ids.max(initial=0) + 1) + ids

    def reduced(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of the whole leaf that the contraction sums over."""
        kept = {*range(self.sliced), *(axis + self.sliced for axis in self.outputs)}
        return rest_of(len(shape), kept)


def find_readers(program: Program) -> dict[str, list[Reader]]:
    """The contractions that read each leaf, in program order."""
    found: dict[str, list[Reader]] = {}
    total: dict[str, int] = {}
    order = 0
    for frame in frames(program):
        for key, leaf in frame.leaves.items():
            total[leaf.path] = total.get(leaf.path, 0) + len(frame.consumers.get(key, ()))
        for op in frame.graph.flat:
            order += 1
            reader = _reader(frame, op, order) if op.primitive in CONTRACTIONS else None
            if reader is not None:
                found.setdefault(reader.leaf, []).append(reader)
    return {path: readers for path, readers in found.items() if total[path] == len(readers)}


def _reader(frame: Frame, op: Op, order: int) -> Reader | None:
    dynamic = [frame.is_dynamic(value) for value in op.inputs[:2]]
    if sum(dynamic) != 1:
        return None
    operand = dynamic.index(True)
    read = _dot_inputs if op.primitive == "dot_general" else _conv_inputs
    axes, inputs = read(op, operand)
    results = sorted(output_axes(op, 1 - operand).values())
    extent = [op.inputs[1 - operand].shape[axis] for axis in results]
    outputs = Layout.of(results, np.arange(np.prod(extent, dtype=int)).reshape(extent))
    found = _behind(frame, op.inputs[1 - operand], (inputs, outputs)) if axes else None
    if found is None:
        return None
    leaf, (inputs, outputs) = found
    path, scans = frame.leaves[id(leaf)]
    if scans not in ((), frame.scans):
        return None
    return Reader(order, frame, op, operand, axes, path, len(scans), inputs, outputs.axes)


def _conv_inputs(op: Op, operand: int) -> Channels:
    """Input feature i of group g at position (i, o) of a kernel with outputs o of that group."""
    numbers = op.params["dimension_numbers"]
    out, into = numbers.rhs_spec[:2]
    n_out, n_in = op.inputs[1].shape[out], op.inputs[1].shape[into]
    group = np.arange(n_out) // (n_out // op.params["feature_group_count"])
    ids = np.arange(n_in)[:, None] + n_in * group[None]
    usable = operand == 0 and op.params["batch_group_count"] == 1
    return (numbers.lhs_spec[1],) if usable else (), Layout.of([into, out], ids)


def _dot_inputs(op: Op, operand: int) -> Channels:
    contracted, batch = op.params["dimension_numbers"]
    axes = (*batch[operand], *contracted[operand])
    weight = (*batch[1 - operand], *contracted[1 - operand])
    extent = [op.inputs[operand].shape[axis] for axis in axes]
    return axes, Layout.of(weight, np.arange(np.prod(extent, dtype=int)).reshape(extent))


def _behind(
    frame: Frame, value: Value, layouts: tuple[Layout, ...]
) -> tuple[Value, tuple[Layout, ...]] | None:
    """The leaf that a value is a view of, with the layouts of its positions."""
    while id(value) not in frame.leaves:
        maker = frame.makers.get(id(value))
        alone = frame.only_consumer(value) is not None
        if maker is None or not alone or maker.primitive not in VIEWS or len(maker.inputs) != 1:
            return None
        pulled = [pull(maker, layout) for layout in layouts]
        layouts = tuple(layout for layout in pulled if layout is not None)
        if len(layouts) < len(pulled):
            return None
        value = maker.inputs[0]
    return value, layouts
