"""The layer behind every activation, and the axes that its channels lie on.

From each convolution or matrix product with a weight among the params, downstream, until an
operation that no scale passes (a shift by a constant, a tanh). Where several layers meet, the
last one counts. The invariant: what is known depends on the function only, not on batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from flaxcle.jaxpr import Op, Value
from flaxcle.jaxpr.frames import Frame
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.jaxpr.layout import moved_axes, output_axes
from flaxcle.paths import parent, strip_collection
from flaxcle.rules.constants import Constants

_ENDS = (
    *("exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "erf", "erf_inv", "erfc"),
    *("sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "round", "floor", "ceil"),
)


@dataclass(frozen=True)
class Source:
    """The layer that an activation comes from: its module, its place in the program, its axes."""

    layer: str
    order: int
    axes: tuple[int, ...]


class Channels:
    """Sources by value; fed with one op after the other, in program order."""

    def __init__(self) -> None:
        """Nothing is known of the inputs."""
        self.constants = Constants()
        self._sources: dict[int, Source] = {}
        self._count = 0

    def of(self, value: Value) -> Source | None:
        """The layer behind a value."""
        return self._sources.get(id(value))

    def enter(self, frame: Frame, op: Op) -> None:
        """Hands the operands of a scan or cond to one of its bodies."""
        for inner, outer, sliced in frame.passed:
            if not sliced:
                self.constants.bind(inner, outer)
        inputs = frame.graph.inputs
        for inner, outer in zip(inputs, op.inputs[-len(inputs) :] if inputs else (), strict=True):
            self._relate(inner, outer, len(inner.shape) - len(outer.shape))

    def leave(self, frame: Frame, op: Op) -> None:
        """Takes the results of a body over to the scan or cond."""
        for outer, inner in zip(op.outputs, frame.graph.outputs, strict=True):
            self._relate(outer, inner, len(outer.shape) - len(inner.shape))

    def _relate(self, new: Value, old: Value, shift: int) -> None:
        """The same source, with axes shifted where a loop slices or stacks."""
        source = self.of(old)
        if source is not None and min(source.axes, default=0) + shift >= 0:
            axes = tuple(axis + shift for axis in source.axes)
            self._sources[id(new)] = replace(source, axes=axes)

    def step(self, frame: Frame, op: Op) -> None:
        """Learns where the results of an op come from."""
        self.constants.learn(op)
        layer = next(_layers(frame, op), None) if op.primitive in CONTRACTIONS else None
        if layer is not None:
            name, operand = layer
            self._count += 1
            source = Source(name, self._count, tuple(output_axes(op, operand)))
        else:
            source = None if self._ends(frame, op) else self._through(op)
        for value in op.outputs:
            if source is not None:
                self._sources.setdefault(id(value), source)

    def _through(self, op: Op) -> Source | None:
        """The latest source among the operands, on the axes where its channels are now."""
        known = [(s, k) for k, value in enumerate(op.inputs) if (s := self.of(value)) is not None]
        if not known:
            return None
        source, operand = max(known, key=lambda pair: pair[0].order)
        return replace(source, axes=moved_axes(op, source.axes, operand) or ())

    def _ends(self, frame: Frame, op: Op) -> bool:
        """Whether no scale passes: a smooth function, or a constant that is added."""
        if op.primitive in _ENDS:
            return True
        if op.primitive not in ("add", "sub", "add_any"):
            return False
        still = [value for value in op.inputs if not frame.is_dynamic(value)]
        arrays = [self.constants.of(value) for value in still]
        return any(array is not None and bool((array != 0).any()) for array in arrays)


def _layers(frame: Frame, op: Op) -> Iterator[tuple[str, int]]:
    """The module and the number of the operand that is a weight."""
    for operand, value in enumerate(op.inputs[:2]):
        if frame.is_dynamic(value) or not frame.is_dynamic(op.inputs[1 - operand]):
            continue
        path = _leaf_behind(frame, value)
        if path is not None:
            yield strip_collection(parent(path)) or path, operand


def _leaf_behind(frame: Frame, value: Value) -> str | None:
    """The first leaf from which a static value is computed."""
    if id(value) in frame.leaves:
        return frame.leaves[id(value)].path
    maker = frame.makers.get(id(value))
    found = (_leaf_behind(frame, operand) for operand in maker.inputs) if maker else ()
    return next((path for path in found if path is not None), None)
