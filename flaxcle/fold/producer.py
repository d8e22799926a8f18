"""The layer behind a norm: the convolution or matrix product that can take the norm's gain.

From the norm's input upstream through reshapes, casts and bias adds, each with a single reader, to
a contraction whose weight is a leaf that nothing else uses. The invariant: the channel of every
position of the weight and of the biases is known exactly, or there is no producer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxcle.fold.match import Use
from flaxcle.jaxpr import Op, Value
from flaxcle.jaxpr.frames import Frame
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.jaxpr.layout import VIEWS, Layout, output_axes, pull


class Placed(NamedTuple):
    """A leaf and the norm's channel of each of its positions (leading scanned axes left out)."""

    path: str
    layout: Layout


class Producer(NamedTuple):
    """The leaves that the gain multiplies; `biases` in the order from the norm upstream."""

    weight: Placed
    biases: tuple[Placed, ...]


def producer_of(use: Use, graphs: Sequence[Frame]) -> Producer | None:
    """The layer that feeds a norm and nothing else, when its leaves are free to change."""
    value, layout, biases = use.start, use.layout, list[Placed]()
    while (op := _sole_maker(use.frame, value)) is not None:
        if op.primitive in CONTRACTIONS:
            weight = _weight(op, layout, use, graphs)
            return Producer(weight, tuple(biases)) if weight is not None else None
        step = _through_view(op, layout) or _through_bias(op, layout, use, graphs)
        if step is None:
            return None
        value, layout, bias = step
        biases += [bias] if bias is not None else []
    return None


_Step = tuple[Value, Layout, Placed | None]


def _sole_maker(frame: Frame, value: Value) -> Op | None:
    """The op that makes a value which has one reader."""
    return frame.makers.get(id(value)) if frame.only_consumer(value) is not None else None


def _through_view(op: Op, layout: Layout) -> _Step | None:
    moved = pull(op, layout) if op.primitive in VIEWS and len(op.inputs) == 1 else None
    return None if moved is None else (op.inputs[0], moved, None)


def _through_bias(op: Op, layout: Layout, use: Use, graphs: Sequence[Frame]) -> _Step | None:
    if op.primitive not in ("add", "add_any"):
        return None
    static = [value for value in op.inputs if not use.frame.is_dynamic(value)]
    data = [value for value in op.inputs if use.frame.is_dynamic(value)]
    if len(data) != 1 or data[0].shape != op.outputs[0].shape:
        return None
    bias = _leaf(static[0], layout, use, graphs)
    return None if bias is None else (data[0], layout, bias)


def _weight(op: Op, layout: Layout, use: Use, graphs: Sequence[Frame]) -> Placed | None:
    """The weight operand with the channels of its output axes."""
    for position, value in enumerate(op.inputs[:2]):
        other = op.inputs[1 - position]
        if use.frame.is_dynamic(value) or not use.frame.is_dynamic(other):
            continue
        axes = output_axes(op, position)
        if all(axis in axes for axis in layout.axes):
            moved = Layout.of([axes[a] for a in layout.axes], np.asarray(layout.index))
            return _leaf(value, moved, use, graphs)
    return None


def _leaf(value: Value, layout: Layout, use: Use, graphs: Sequence[Frame]) -> Placed | None:
    """The leaf behind a view that nothing else reads, in the same loops as the norm."""
    frame = use.frame
    while id(value) not in frame.leaves:
        op = _sole_maker(frame, value)
        step = _through_view(op, layout) if op is not None and _fits(layout, value) else None
        if step is None:
            return None
        value, layout, _ = step
    leaf = frame.leaves[id(value)]
    free = _fits(layout, value) and leaf.scans == use.scans and _readers(leaf.path, graphs) == 1
    return Placed(leaf.path, layout) if free else None


def _fits(layout: Layout, value: Value) -> bool:
    """False where one position stands for several channels."""
    shape = value.shape
    if any(axis >= len(shape) for axis in layout.axes):
        return False
    return layout.index.shape == tuple(shape[axis] for axis in layout.axes)


def _readers(path: str, graphs: Sequence[Frame]) -> int:
    return sum(
        len(frame.consumers.get(key, ()))
        for frame in graphs
        for key, leaf in frame.leaves.items()
        if leaf.path == path
    )
