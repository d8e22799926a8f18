"""Gather and scatter: elements at the positions that an index array names.

A gather whose indices are known constants is a permutation, with repetitions, of an axis. Any
other one may read or write anywhere along the indexed axes, which must have one scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flaxcle.jaxpr import Op
from flaxcle.rules import box, scale
from flaxcle.rules.box import Irregular, Shape
from flaxcle.rules.context import Context, Rule, Why, shape_of
from flaxcle.rules.indexing import blended, uniform
from flaxcle.rules.scale import WILD, Scale, Terms

MAX_PIECES = 1024
SCATTERS = ("scatter", "scatter_add", "scatter_max", "scatter_min")


def gather(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Windows of the operand at the positions that the indices name."""
    if args[0].wild:
        return [WILD]
    numbers = op.params["dimension_numbers"]
    known = _known_lookup(op, args[0], context)
    if known is not None:
        return [known]
    old, new = shape_of(op.inputs[0]), shape_of(op.outputs[0])
    sizes = op.params["slice_sizes"]
    batching = _batching(numbers)
    indexed = [
        axis
        for axis in range(len(old))
        if axis not in batching and (sizes[axis] != old[axis] or _collapsed(numbers, axis, old))
    ]
    terms = uniform(args[0].terms, old, indexed, op, context, args[0].gauge)
    kept = [axis for axis in range(len(old)) if axis not in indexed]
    return [Scale(_gathered(terms, kept, old, new, op, batching))]


def _batching(numbers: Any) -> tuple[int, ...]:
    return tuple(getattr(numbers, "operand_batching_dims", ()))


def _collapsed(numbers: Any, axis: int, shape: Shape) -> bool:
    return axis in numbers.collapsed_slice_dims and shape[axis] > 1


def _gathered(
    terms: Terms, kept: Sequence[int], old: Shape, new: Shape, op: Op, batching: tuple[int, ...]
) -> Terms:
    """Places the axes that are read whole: offset dims in order, batch dims of the indices."""
    numbers = op.params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *batching}
    offsets = dict(
        zip([a for a in range(len(old)) if a not in gone], numbers.offset_dims, strict=True)
    )
    batch_out = [a for a in range(len(new)) if a not in numbers.offset_dims]
    index_batch = getattr(numbers, "start_indices_batching_dims", ())
    for axis, place in zip(batching, index_batch, strict=True):
        offsets[axis] = batch_out[place]
    at = {axis: offsets[axis] for axis in kept if axis in offsets}
    terms = scale.drop(terms, [i for i, axis in enumerate(kept) if axis not in at])
    kept = [axis for axis in kept if axis in at]
    order = sorted(range(len(kept)), key=lambda i: at[kept[i]])
    moved = scale.transpose(terms, order)
    shape = tuple(old[kept[i]] for i in order)
    return scale.broadcast(moved, shape, new, [at[kept[i]] for i in order])


def _known_lookup(op: Op, arg: Scale, context: Context) -> Scale | None:
    """One axis read at known indices, or windows of known start."""
    numbers = op.params["dimension_numbers"]
    mapped = tuple(numbers.start_index_map)
    if len(mapped) != 1 or getattr(numbers, "operand_batching_dims", ()):
        return None
    (axis,) = mapped
    size = op.params["slice_sizes"][axis]
    indices = context.constants.of(op.inputs[1])
    old, new = shape_of(op.inputs[0]), shape_of(op.outputs[0])
    others = [a for a in range(len(old)) if a != axis]
    if indices is None or any(op.params["slice_sizes"][a] != old[a] for a in others):
        return None
    starts = np.clip(indices[..., 0], 0, old[axis] - size)
    if axis not in numbers.collapsed_slice_dims:
        if starts.size != 1:
            return None
        return arg.keep(
            scale.window(arg.terms, axis, int(starts.ravel()[0]), int(starts.ravel()[0]) + size)
        )
    picked = take(arg.terms, axis, starts.ravel())
    shape = (*old[:axis], starts.size, *old[axis + 1 :])
    # Move the looked-up axis first, open it to the indices' shape, then place all axes.
    order = (axis, *others)
    terms = scale.transpose(picked, order)
    opened = (*starts.shape, *(old[a] for a in others))
    terms = scale.reshape(terms, tuple(shape[a] for a in order), opened)
    batch_out = [a for a in range(len(new)) if a not in numbers.offset_dims]
    at = (*batch_out, *numbers.offset_dims)
    turn = sorted(range(len(at)), key=lambda i: at[i])
    return arg.keep(scale.transpose(terms, turn))


def take(terms: Terms, axis: int, indices: np.ndarray) -> Terms:
    """Elements of one axis in the order of known indices."""
    ranges = list(_ranges(indices))
    if len(ranges) > MAX_PIECES:
        raise Irregular
    out = []
    for at, start, length, step in ranges:
        low = start if step >= 0 else start + (length - 1) * step
        part = scale.window(terms, axis, low, low + abs(step) * (length - 1) + 1, abs(step) or 1)
        if step < 0:
            part = scale.move(
                part,
                lambda axes, n=length: box.on_axis(axes, axis, [box.reversed_axis(axes[axis], n)]),
            )
        if step == 0:
            part = scale.move(
                part, lambda axes, n=length: box.on_axis(axes, axis, [(0, box.whole(n))])
            )
        out += list(scale.place(part, axis, at))
    return scale.fuse(out)


def _ranges(indices: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Maximal stretches in which the indices advance evenly: (position, start, length, step)."""
    at = 0
    steps = np.diff(indices)
    while at < len(indices):
        if at + 1 == len(indices):
            yield at, int(indices[at]), 1, 1
            return
        step = int(steps[at])
        breaks = np.flatnonzero(steps[at:] != step)
        length = int(breaks[0]) + 1 if breaks.size else len(indices) - at
        yield at, int(indices[at]), length, step
        at += length


def scatter(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Writes, adds or takes extrema at indices: operand and updates share one scale."""
    target, _, update = args
    if target.wild and update.wild:
        return [WILD]
    numbers = op.params["dimension_numbers"]
    shape, size = shape_of(op.inputs[0]), shape_of(op.inputs[2])
    batching = _batching(numbers)
    gone = {*numbers.inserted_window_dims, *batching}
    windows = dict(
        zip(
            [a for a in range(len(shape)) if a not in gone], numbers.update_window_dims, strict=True
        )
    )
    kept = [a for a, at in windows.items() if shape[a] == size[at]]
    indexed = [a for a in range(len(shape)) if a not in kept]
    loose = [a for a in range(len(size)) if a not in [windows[k] for k in kept]]
    return [blended(target, update, shape, size, (indexed, loose), op, context)]


def scatter_mul(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Multiplies some elements by updates, which must not carry a scale of their own."""
    target, _, update = args
    context.pin(update, shape_of(op.inputs[2]), Why("opaque", op))
    return [Scale(target.terms, target.wild)]


RULES: dict[str, Rule] = {
    "gather": gather,
    "scatter_mul": scatter_mul,
    "scatter-mul": scatter_mul,
    **{
        name: scatter for scattered in SCATTERS for name in (scattered, scattered.replace("_", "-"))
    },
}
