"""The polynomial behind every value of a graph that is per-channel arithmetic of leaves.

A static value (no data in it) has one form. A data value has a form from each of the last few
values that it may have started from: where a norm begins is only known where it ends. The
invariant: a form lists the ops that it stands for, no more and no less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flaxcle.fold import algebra
from flaxcle.fold.algebra import Atom, Poly
from flaxcle.jaxpr import Op, Value
from flaxcle.jaxpr.frames import Frame
from flaxcle.jaxpr.layout import VIEWS, Layout, push
from flaxcle.rules.constants import Constants
from flaxcle.rules.context import as_number

_STARTS = 8
_MAX_LEAF = 1 << 16  # a norm's leaf has one value per channel; larger leaves are weights
ROOTS = ("rsqrt", "sqrt", "pow")
_BINARY = {
    "add": algebra.add,
    "add_any": algebra.add,
    "sub": lambda one, two: algebra.add(one, two, -1.0),
    "mul": algebra.multiply,
    "div": algebra.divide,
}


@dataclass(frozen=True)
class Form:
    """What a value is: a polynomial, the ops that compute it, and the data value it starts from."""

    poly: Poly = field(hash=False)
    ops: frozenset[Op] = frozenset()
    start: Value | None = None


class Forms(Mapping[int, tuple[Form, ...]]):
    """The forms of all the values of a frame, by id of the value."""

    def __init__(self, frame: Frame, constants: Constants) -> None:
        """Walks the frame once."""
        self._frame, self._constants = frame, constants
        self._known: dict[int, tuple[Form, ...]] = {}
        for op in frame.graph.flat:
            constants.learn(op)
            forms = [*self._through(op)][-_STARTS:]
            for value in op.outputs:
                self._known[id(value)] = tuple(forms)

    def __getitem__(self, key: int) -> tuple[Form, ...]:
        """The forms of a value that an op makes."""
        return self._known[key]

    def __iter__(self) -> Any:
        """Ids in program order."""
        return iter(self._known)

    def __len__(self) -> int:
        """Number of values."""
        return len(self._known)

    def _of(self, value: Value) -> tuple[Form, ...]:
        if self._frame.is_dynamic(value):
            start = Form(algebra.atom(Atom("data", id(value))), start=value)
            return (*self._known.get(id(value), ()), start)
        if self._known.get(id(value)):
            return self._known[id(value)]
        leaf = self._frame.leaves.get(id(value))
        if leaf is not None:
            small = math.prod(value.shape) <= _MAX_LEAF
            whole = Layout.whole(value.shape) if small else None
            return (Form(algebra.atom(Atom("leaf", leaf.path, whole))),) if small else ()
        number = as_number(self._constants.of(value))
        return () if number is None else (Form(algebra.constant(number)),)

    def _through(self, op: Op) -> list[Form]:
        if op.primitive in _BINARY:
            return self._binary(op)
        if not op.inputs or len(op.outputs) != 1:
            return []
        out = []
        for form in self._of(op.inputs[0]):
            poly = self._unary(op, form)
            if poly is not None:
                out.append(Form(poly, form.ops | {op}, form.start))
        return out

    def _binary(self, op: Op) -> list[Form]:
        one, two = op.inputs
        if self._frame.is_dynamic(one) and self._frame.is_dynamic(two):
            return []
        if any(self._frame.is_dynamic(v) and v.shape != op.outputs[0].shape for v in (one, two)):
            return []
        out = []
        for first in self._of(one):
            for second in self._of(two):
                poly = _BINARY[op.primitive](first.poly, second.poly)
                if poly is not None:
                    ops = first.ops | second.ops | {op}
                    out.append(Form(poly, ops, first.start or second.start))
        return out

    def _unary(self, op: Op, form: Form) -> Poly | None:
        poly, dtype = form.poly, str(op.inputs[0].dtype)
        if op.primitive == "convert_element_type":
            return poly
        if op.primitive == "neg":
            return algebra.multiply(poly, algebra.constant(-1.0))
        if form.start is not None:
            return None
        if op.primitive == "rsqrt":
            return algebra.root(poly, 1, dtype)
        if op.primitive == "sqrt":
            return algebra.root(poly, -1, dtype)
        if op.primitive == "pow":
            return self._pow(op, poly, dtype)
        if op.primitive == "integer_pow" and op.params["y"] == -1:
            return algebra.divide(algebra.constant(1.0), poly)
        return algebra.relabel(poly, lambda layout: push(op, layout)) if _is_view(op) else None

    def _pow(self, op: Op, poly: Poly, dtype: str) -> Poly | None:
        exponents = {-0.5: 1, 0.5: -1}
        number = as_number(self._constants.of(op.inputs[1]))
        return algebra.root(poly, exponents[number], dtype) if number in exponents else None


def _is_view(op: Op) -> bool:
    return op.primitive in VIEWS and len(op.inputs) == 1
