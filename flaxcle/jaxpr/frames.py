"""Every graph of a program with what it sees of the params: the top, bodies of scans, branches.

A frame knows which of its values are leaves (or the slice of a leaf that one step of a scan sees),
which depend on data, and who makes and consumes each value. The invariant: a leaf that goes where
no frame follows (a scan's carry, a while loop) counts as consumed there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from flaxcle.jaxpr.graph import Graph, Op, Value
from flaxcle.jaxpr.program import Program
from flaxcle.jaxpr.trace import scan_arity


class Leaf(NamedTuple):
    """A leaf of the params as a frame sees it; each scan in `scans` has sliced one leading axis."""

    path: str
    scans: tuple[Op, ...] = ()


class Passed(NamedTuple):
    """An argument that a scan or cond hands to its body; `sliced` along the leading axis."""

    inner: Value
    outer: Value
    sliced: bool = False


@dataclass(eq=False)
class Frame:
    """One graph.

    Attributes:
        leaves: id of a value -> the leaf that it is.
        dynamic: ids of the values that depend on the function's inputs.
        makers, consumers: the op behind a value, the ops that read it (None: the graph's output).
        scans: the scans around the graph; `passed` is what the op around it hands in.
        inside: the frames of the bodies of scans and branches, by op.
    """

    graph: Graph
    scans: tuple[Op, ...] = ()
    passed: tuple[Passed, ...] = ()
    inside: dict[Op, tuple[Frame, ...]] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)
    dynamic: set[int] = field(default_factory=set)
    makers: dict[int, Op] = field(default_factory=dict)
    consumers: dict[int, list[Op | None]] = field(default_factory=lambda: defaultdict(list))

    def is_dynamic(self, value: Value) -> bool:
        """Whether the value depends on the function's inputs."""
        return id(value) in self.dynamic

    def only_consumer(self, value: Value) -> Op | None:
        """The op that reads the value, when nothing else does."""
        readers = self.consumers.get(id(value), [])
        return readers[0] if len(readers) == 1 else None


def frames(program: Program) -> list[Frame]:
    """The frames of a program, each before those inside it."""
    top = Frame(program.graph)
    top.leaves = {id(value): Leaf(path) for path, value in program.params.items()}
    top.dynamic = {id(value) for value in program.inputs}
    return list(_walk(top))


def _walk(frame: Frame) -> Iterator[Frame]:
    for op in frame.graph.flat:
        frame.makers.update({id(value): op for value in op.outputs})
        if any(id(value) in frame.dynamic for value in op.inputs):
            frame.dynamic |= {id(value) for value in op.outputs}
        frame.inside[op] = tuple(_inner(frame, op))
        followed = _followed(op)
        for position, value in enumerate(op.inputs):
            if position not in followed or id(value) not in frame.leaves:
                frame.consumers[id(value)].append(op)
    for value in frame.graph.outputs:
        frame.consumers[id(value)].append(None)
    yield frame
    for inner in (inner for bodies in frame.inside.values() for inner in bodies):
        yield from _walk(inner)


def _inner(frame: Frame, op: Op) -> Iterator[Frame]:
    """The frames of a scan's body or of all branches, with what they are handed."""
    for graph in op.bodies if op.primitive in ("scan", "cond") else ():
        scans = (*frame.scans, op) if op.primitive == "scan" else frame.scans
        passed = tuple(_passed(op, graph))
        inner = Frame(graph, scans, passed)
        given = {id(p.inner) for p in passed}
        inner.dynamic = {id(value) for value in graph.inputs if id(value) not in given}
        for inside, outside, sliced in passed:
            if id(outside) in frame.dynamic:
                inner.dynamic.add(id(inside))
            if id(outside) in frame.leaves:
                path, lead = frame.leaves[id(outside)]
                inner.leaves[id(inside)] = Leaf(path, (*lead, op) if sliced else lead)
        yield inner


def _passed(op: Op, graph: Graph) -> Iterator[Passed]:
    first = 0 if op.primitive == "scan" else 1
    for position, sliced in _followed(op).items():
        yield Passed(graph.inputs[position - first], op.inputs[position], sliced)


def _followed(op: Op) -> dict[int, bool]:
    """The operands that go in unchanged every time (not a scan's carry), and whether sliced."""
    if op.primitive == "cond":
        return dict.fromkeys(range(1, len(op.inputs)), False)
    if op.primitive != "scan":
        return {}
    n_consts, n_carry = scan_arity(op.params)
    sliced = range(n_consts + n_carry, len(op.inputs))
    return {**dict.fromkeys(range(n_consts), False), **dict.fromkeys(sliced, True)}
