"""Which operations clip an activation at a constant, and what their bounds are called.

    min(x, c)    max(x, c)    clamp(c, x, c)    where(x > c, c, x)

The invariant: names and shapes depend on the function only, so that a later trace with another
batch size finds the same clips.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from flaxcle.clips.channels import Channels
from flaxcle.jaxpr import Op, Program, Value
from flaxcle.jaxpr.frames import Frame, frames

_ABOVE = {"gt": True, "ge": True, "lt": False, "le": False}
_SIDES = {
    "min": ((1, 0, "max"), (0, 1, "max")),
    "max": ((1, 0, "min"), (0, 1, "min")),
    "clamp": ((0, 1, "min"), (2, 1, "max")),
}


@dataclass(frozen=True)
class Clip:
    """One constant bound of an op.

    Attributes:
        path: of its leaf, within the collection.
        side: `"max"` or `"min"`.
        bound, clipped: the operands that hold the constant and the activation.
        axes: of the activation, along which the bounds lie.
        value: the constant.
        shape: of its leaf: one axis for each scan around it, then those of `axes`.
    """

    path: str
    side: str
    bound: int
    clipped: int
    axes: tuple[int, ...]
    value: float
    shape: tuple[int, ...]


def find_clips(program: Program) -> dict[Op, tuple[Clip, ...]]:
    """The clips of a function by op, in program order."""
    finder = _Finder()
    finder.visit(frames(program)[0])
    return finder.found


class _Finder:
    def __init__(self) -> None:
        self.found: dict[Op, tuple[Clip, ...]] = {}
        self.channels = Channels()
        self.names: set[str] = set()
        self.makers: dict[int, Op] = {}

    def visit(self, frame: Frame) -> None:
        for op in frame.graph.flat:
            self.makers.update({id(value): op for value in op.outputs})
            for inner in frame.inside[op]:
                self.channels.enter(inner, op)
                self.visit(inner)
                self.channels.leave(inner, op)
            clips = tuple(self._named(frame, op, *side) for side in self._sides(frame, op))
            if clips:
                self.found[op] = clips
            self.channels.step(frame, op)

    def _sides(self, frame: Frame, op: Op) -> Iterator[tuple[int, int, str, float]]:
        """Operand of the bound, operand of the activation, side and constant."""
        selected = self._selected(op) if op.primitive == "select_n" else None
        for bound, clipped, side in (selected,) if selected else _SIDES.get(op.primitive, ()):
            x, value = op.inputs[clipped], self.bound(op.inputs[bound])
            if value is not None and frame.is_dynamic(x) and self.channels.of(x) is not None:
                yield bound, clipped, side, value

    def bound(self, value: Value) -> float | None:
        """The constant, when it is one finite number other than zero."""
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return None
        array = self.channels.constants.of(self._unbroadcast(value))
        if array is None or not array.size:
            return None
        first = float(array.ravel()[0])
        usable = first != 0 and np.isfinite(first) and bool((array == first).all())
        return first if usable else None

    def _unbroadcast(self, value: Value) -> Value:
        """A scalar instead of the array that it was spread to, however large."""
        maker = self.makers.get(id(value))
        spread = maker is not None and maker.primitive == "broadcast_in_dim"
        return self._unbroadcast(maker.inputs[0]) if maker is not None and spread else value

    def _selected(self, op: Op) -> tuple[int, int, str] | None:
        """Reads `where(x > c, c, y)`, y being x or x clipped on the other side."""
        test = self.makers.get(id(op.inputs[0]))
        if len(op.inputs) != 3 or test is None or test.primitive not in _ABOVE:
            return None
        above, (x, limit) = _ABOVE[test.primitive], test.inputs
        if self.bound(limit) is None:
            above, x, limit = not above, limit, x
        edge = self.bound(limit)
        if edge is None:
            return None
        for bound, clipped in ((1, 2), (2, 1)):
            side = "max" if above == (bound == 2) else "min"
            same = self.bound(op.inputs[bound]) == edge
            if same and self._within(op.inputs[clipped], x, side, edge):
                return bound, clipped, side
        return None

    def _within(self, value: Value, x: Value, side: str, edge: float) -> bool:
        """Whether a value is x, or x clipped at a bound of the other side."""
        if value is x:
            return True
        maker = self.makers.get(id(value))
        clips = self.found.get(maker, ()) if maker is not None else ()
        if maker is None or len(clips) != 1 or maker.inputs[clips[0].clipped] is not x:
            return False
        (clip,) = clips
        low, high = (clip.value, edge) if side == "max" else (edge, clip.value)
        return clip.side != side and low < high

    def _named(
        self, frame: Frame, op: Op, bound: int, clipped: int, side: str, value: float
    ) -> Clip:
        x = op.inputs[clipped]
        source = self.channels.of(x)
        axes = (source.axes if source else ()) or (len(x.shape) - 1,)
        lead = tuple(scan.params["length"] for scan in frame.scans)
        path = self._free(f"{source.layer if source else op.scope}/{side}")
        shape = (*lead, *(x.shape[axis] for axis in axes))
        return Clip(path, side, bound, clipped, axes, value, shape)

    def _free(self, path: str) -> str:
        """The path, numbered when it is taken."""
        numbered = (f"{path}_{count}" for count in range(1, len(self.names) + 2))
        free = next(name for name in (path, *numbered) if not self._taken(name))
        self.names.add(free)
        return free

    def _taken(self, path: str) -> bool:
        """Whether a leaf has this path, or a leaf would stand where a module must."""
        pairs = [sorted((f"{path}/", f"{name}/"), key=len) for name in self.names]
        return any(longer.startswith(shorter) for shorter, longer in pairs)
