"""Views of leaves: which axis of a leaf each axis of a value comes from.

A value is a view as long as it is computed from leaves and constants alone by operations that
move, cast or combine elements in place. The invariant: axes of size one carry nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from flaxcle.jaxpr import Op

Origin = frozenset[int]
NONE: Origin = frozenset()


class View(NamedTuple):
    """The leaf's axes behind every axis of a value; `extra`: axes that a loop has sliced off."""

    leaf: str
    axes: tuple[Origin, ...]
    extra: Origin = NONE

    @classmethod
    def of(cls, leaf: str, shape: Sequence[int]) -> View:
        """The leaf itself."""
        return cls(leaf, tuple(frozenset({a}) if n > 1 else NONE for a, n in enumerate(shape)))

    def moved(self, sources: Sequence[Sequence[int]]) -> View:
        """The view in a layout whose axes come from these axes."""
        return self._replace(
            axes=tuple(NONE.union(*(self.axes[a] for a in source)) for source in sources)
        )

    def sliced(self) -> View:
        """One element of the first axis."""
        return View(self.leaf, self.axes[1:], self.extra | self.axes[0])


Sources = list[tuple[int, ...]]


def mapped_views(op: Op, views: Sequence[tuple[View, ...]]) -> tuple[View, ...] | None:
    """Views of the result; `None` when the operation does not keep them."""
    found: dict[str, View] = {}
    for number, own in enumerate(views):
        sources = _sources(op, number)
        if sources is None:
            return None
        for view in own:
            moved = view.moved(sources)
            if view.leaf in found:
                moved = _united(found[view.leaf], moved)
            found[view.leaf] = moved
    return tuple(found.values())


def _united(one: View, two: View) -> View:
    axes = tuple(a | b for a, b in zip(one.axes, two.axes, strict=True))
    return View(one.leaf, axes, one.extra | two.extra)


def _sources(op: Op, number: int) -> Sources | None:
    """For every axis of the result, the operand's axes that it comes from."""
    if op.primitive in SOURCES:
        return SOURCES[op.primitive](op, number)
    if len(op.outputs) != 1:
        return None
    shape, result = op.inputs[number].shape, op.outputs[0].shape
    if not shape:
        return [()] * len(result)
    return [(a,) for a in range(len(shape))] if len(shape) == len(result) else None


def _reshaped(op: Op, number: int) -> Sources:
    """Axes that are merged or cut come from all the axes of the same block."""
    old, new = op.inputs[number].shape, op.outputs[0].shape
    out: Sources = []
    i = 0
    block: list[int] = []
    members: list[int] = []
    left = right = 1
    for a, size in enumerate(new):
        members.append(a)
        right *= size
        while left < right and i < len(old):
            block.append(i)
            left *= old[i]
            i += 1
        if left == right:
            out += [tuple(block) if new[m] > 1 else () for m in members]
            block, members, left, right = [], [], 1, 1
    return out + [tuple(block)] * (len(new) - len(out))


def _transposed(op: Op, number: int) -> Sources:
    return [(a,) for a in op.params["permutation"]]


def _broadcast(op: Op, number: int) -> Sources:
    out: Sources = [()] * len(op.outputs[0].shape)
    for a, place in enumerate(op.params["broadcast_dimensions"]):
        out[place] = (a,)
    return out


def _reduced(op: Op, number: int) -> Sources:
    gone = set(op.params["axes"])
    return [(a,) for a in range(len(op.inputs[number].shape)) if a not in gone]


def _multiplied(op: Op, number: int) -> Sources:
    """Batch axes, then the free axes of both operands."""
    sums, batches = op.params["dimension_numbers"]
    free = [
        [a for a in range(len(value.shape)) if a not in {*sums[n], *batches[n]}]
        for n, value in enumerate(op.inputs)
    ]
    own = [[(a,) for a in free[n]] if n == number else [()] * len(free[n]) for n in range(2)]
    return [*((a,) for a in batches[number]), *own[0], *own[1]]


SOURCES: dict[str, Callable[[Op, int], Sources | None]] = {
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "expand_dims": _reshaped,
    "transpose": _transposed,
    "broadcast_in_dim": _broadcast,
    "dot_general": _multiplied,
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _reduced),
    **dict.fromkeys(
        ("gather", "conv_general_dilated", "sort", "split", "dynamic_slice"), lambda *_: None
    ),
}
