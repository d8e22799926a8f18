"""Which channel each position of an array belongs to, carried through ops that only move.

A layout holds channel numbers along a few axes; along the others the channel is constant. `push`
carries it from operand to result, `pull` from result to operand. The invariant: both refuse (None)
what is not a pure rearrangement, so a layout is never approximate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flaxcle.jaxpr.graph import Op
from flaxcle.spec.index import Index

_COPIES = ("convert_element_type", "copy", "copy_p", "reduce_precision", "sharding_constraint")
VIEWS = (*_COPIES, "reshape", "transpose", "broadcast_in_dim", "squeeze", "rev", "name")


@dataclass(frozen=True)
class Layout:
    """Channel numbers along `axes`, increasing; equal layouts are equal objects.

    >>> Layout.of((1, 3), np.array([[0, 1], [0, 1]]))
    Layout(axes=(3,), index=Index(shape=(2,), runs=(Run(start=0, length=2, step=1, ...),)))
    """

    axes: tuple[int, ...]
    index: Index

    @classmethod
    def of(cls, axes: Sequence[int], ids: np.ndarray) -> Layout:
        """Sorts the axes and drops those along which the channel is constant."""
        order = np.argsort(axes, kind="stable") if len(axes) else []
        axes, ids = [axes[i] for i in order], ids.transpose(order)
        for position in reversed(range(len(axes))):
            first = np.take(ids, [0], axis=position)
            if (ids == first).all():
                ids = first.squeeze(position)
                del axes[position]
        return cls(tuple(axes), Index.of(ids))

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Layout:
        """Every position is a channel of its own."""
        return cls.of(range(len(shape)), np.arange(math.prod(shape)).reshape(shape))

    def spread(self, axes: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
        """The channel numbers over more axes (in increasing order) of an array of this shape."""
        extent = [shape[a] if a in self.axes else 1 for a in axes]
        return np.broadcast_to(
            np.asarray(self.index).reshape(extent), [shape[axis] for axis in axes]
        )


def push(op: Op, layout: Layout) -> Layout | None:
    """The layout of a view's result, from that of its operand."""
    return _move(op, layout, forward=True)


def pull(op: Op, layout: Layout) -> Layout | None:
    """The layout of a view's operand, from that of its result."""
    return _move(op, layout, forward=False)


def reshape_axes(
    axes: Sequence[int], source: tuple[int, ...], target: tuple[int, ...]
) -> tuple[list[int], list[int]]:
    """The blocks of axes that a reshape mixes and that hold `axes`: (in source, in target).

    >>> reshape_axes((3,), (2, 4, 4, 6), (2, 16, 2, 3))
    ([3], [2, 3])
    """
    inside: list[int] = []
    outside: list[int] = []
    for block, image in _blocks(source, target):
        if any(axis in block for axis in axes):
            inside += block
            outside += image
    return inside, outside


def moved_axes(op: Op, axes: Sequence[int], operand: int = 0) -> tuple[int, ...] | None:
    """Where axes of an operand lie in the first result; `None` where they do not survive.

    Results of the same rank keep their axes, whatever happened along them.
    """
    source, target = op.inputs[operand].shape, op.outputs[0].shape
    if op.primitive == "reshape":
        return tuple(reshape_axes(axes, source, target)[1]) or None
    if op.primitive in ("transpose", "broadcast_in_dim", "squeeze") or "axes" in op.params:
        images = _images(op)
    else:
        images = {axis: axis for axis in range(len(source)) if len(source) == len(target)}
    return tuple(images[axis] for axis in axes) if all(axis in images for axis in axes) else None


def output_axes(op: Op, operand: int) -> dict[int, int]:
    """Axes of a contraction's result that run along one operand: result axis -> operand axis."""
    numbers: Any = op.params["dimension_numbers"]
    if op.primitive == "conv_general_dilated":
        return {numbers.out_spec[1]: numbers.rhs_spec[0]} if operand == 1 else {}
    contracted, batch = numbers
    free = [
        [a for a in range(len(v.shape)) if a not in contracted[k] and a not in batch[k]]
        for k, v in enumerate(op.inputs[:2])
    ]
    start = len(batch[0]) + (len(free[0]) if operand else 0)
    own = {start + k: axis for k, axis in enumerate(free[operand])}
    return {**dict(enumerate(batch[operand])), **own}


def _blocks(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes of equal size on both sides; axes of size one stand alone."""
    blocks: list[tuple[list[int], list[int]]] = []
    left = [axis for axis, size in enumerate(source) if size != 1]
    right = [axis for axis, size in enumerate(target) if size != 1]
    while left and right:
        block, image = [left.pop(0)], [right.pop(0)]
        while (a := _size(source, block)) != (b := _size(target, image)):
            (block if a < b else image).append((left if a < b else right).pop(0))
        blocks.append((block, image))
    return blocks


def _size(shape: tuple[int, ...], axes: list[int]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _move(op: Op, layout: Layout, forward: bool) -> Layout | None:
    source, target = op.inputs[0].shape, op.outputs[0].shape
    if op.primitive not in VIEWS or 0 in source:
        return None
    if not layout.axes or op.primitive in (*_COPIES, "name"):
        return layout
    if op.primitive == "reshape":
        here, there = (source, target) if forward else (target, source)
        return None if op.params.get("dimensions") else _reshape(layout, here, there)
    if op.primitive == "rev":
        return _reverse(layout, op.params["dimensions"], source)
    images = _images(op)
    moved = _relabel(layout, images if forward else {b: a for a, b in images.items()})
    return moved if moved is not None and _fits(moved, target if forward else source) else None


def _images(op: Op) -> dict[int, int]:
    """Operand axis -> result axis of a transpose, broadcast, squeeze or reduction."""
    rank, params = len(op.inputs[0].shape), op.params
    if op.primitive == "transpose":
        return {axis: image for image, axis in enumerate(params["permutation"])}
    if op.primitive == "broadcast_in_dim":
        return dict(enumerate(params["broadcast_dimensions"]))
    gone = params["axes"] if "axes" in params else params["dimensions"]
    kept = [axis for axis in range(rank) if axis not in gone]
    return {axis: image for image, axis in enumerate(kept)}


def _relabel(layout: Layout, images: dict[int, int]) -> Layout | None:
    if any(axis not in images for axis in layout.axes):
        return None
    return Layout.of([images[axis] for axis in layout.axes], np.asarray(layout.index))


def _fits(layout: Layout, shape: tuple[int, ...]) -> bool:
    """False where a broadcast repeats one position over several channels."""
    return layout.index.shape == tuple(shape[axis] for axis in layout.axes)


def _reshape(layout: Layout, source: tuple[int, ...], target: tuple[int, ...]) -> Layout:
    inside, outside = reshape_axes(layout.axes, source, target)
    ids = layout.spread(inside, source)
    return Layout.of(outside, ids.reshape([target[axis] for axis in outside]))


def _reverse(layout: Layout, dimensions: Sequence[int], shape: tuple[int, ...]) -> Layout:
    flipped = tuple(layout.axes.index(axis) for axis in dimensions if axis in layout.axes)
    return Layout.of(layout.axes, np.flip(layout.spread(layout.axes, shape), flipped))
