"""What flows where: which values depend on data, from which tensors, and which are views of params.

Facts about every value of a traced function, loops and branches included. `origins` are the
tensors that elementwise and layout operations lead back to (inputs, results of contractions,
residual sums): `x + f(x)` has different origins on both sides, the sum inside gelu has not. What
comes from integers alone (a padding mask, positions) is exact, so a sum with it is no residual.
`view` says which axes of a param leaf the dimensions of a value run along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import jax.numpy as jnp

from flaxcle.jaxpr import Graph, Op, Program, Value
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.jaxpr.trace import scan_arity

_SAME = ("convert_element_type", "copy", "optimization_barrier", "sharding_constraint")
LAYOUT = (*_SAME, "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "rev")


@dataclass(frozen=True)
class Fact:
    """What is known of one value.

    Attributes:
        origins: ids of its source tensors; none for a value that no input reaches.
        leaf: path of the param leaf that it is a layout of.
        view: per dimension the axis of that leaf, or `None`; empty when it can't be said.
        loops: per enclosing scan the axis of that leaf that it runs along, or `None`.
    """

    origins: frozenset[int] = frozenset()
    leaf: str | None = None
    view: tuple[int | None, ...] = ()
    loops: tuple[int | None, ...] = ()

    @property
    def dynamic(self) -> bool:
        """Whether the value depends on the inputs."""
        return bool(self.origins)


@dataclass
class Flow:
    """Facts by value, all live ops in program order, and which of them are residual adds."""

    facts: dict[int, Fact] = field(default_factory=dict)
    ops: list[Op] = field(default_factory=list)
    residual: set[Op] = field(default_factory=set)
    rounded: set[int] = field(default_factory=set)

    def __getitem__(self, value: Value) -> Fact:
        """The facts of a value; constants have none."""
        return self.facts.get(id(value), Fact())

    def origin(self, value: Value) -> frozenset[int]:
        """The value as a source tensor; one of floats would be rounded by an accelerator."""
        if jnp.issubdtype(value.dtype, jnp.floating):
            self.rounded.add(id(value))
        return frozenset([id(value)])


def follow(program: Program) -> Flow:
    """Walks a traced function once, from its params and inputs to its outputs."""
    flow = Flow()
    for path, value in program.params.items():
        flow.facts[id(value)] = Fact(leaf=path, view=tuple(range(len(value.shape))))
    for value in program.inputs:
        flow.facts[id(value)] = Fact(flow.origin(value))
    _walk(flow, program.graph)
    return flow


def _walk(flow: Flow, graph: Graph) -> None:
    for op in graph.flat:
        facts = [flow[value] for value in op.inputs]
        flow.ops.append(op)
        if op.bodies:
            _enter(flow, op, facts)
        elif _is_residual(flow, op, facts):
            flow.residual.add(op)
        _leave(flow, op, facts)


def _is_residual(flow: Flow, op: Op, facts: Sequence[Fact]) -> bool:
    """Whether two different tensors meet; a difference is a sum with a sign."""
    if op.primitive not in ("add", "add_any", "sub"):
        return False
    first, second = (fact.origins & flow.rounded for fact in facts)
    return bool(first) and bool(second) and first != second


def _leave(flow: Flow, op: Op, facts: Sequence[Fact]) -> None:
    origins = frozenset().union(*(fact.origins for fact in facts))
    starts = (*CONTRACTIONS, "gather")
    new = op.primitive in starts or bool(op.bodies) or op in flow.residual
    source = facts[0] if op.primitive in LAYOUT and facts[0].leaf else None
    for value in op.outputs:
        own = flow.origin(value) if new and origins else origins
        view = _view(op, source, value) if source else ()
        fact = replace(source or Fact(), origins=own, view=view)
        flow.facts.setdefault(id(value), fact)


def _view(op: Op, fact: Fact, out: Value) -> tuple[int | None, ...]:
    """Where the leaf's axes are after a layout operation."""
    shape = op.inputs[0].shape
    if len(fact.view) != len(shape):
        return ()
    if op.primitive in _SAME:
        return fact.view
    if op.primitive == "rev":
        return ()
    if op.primitive == "transpose":
        return tuple(fact.view[k] for k in op.params["permutation"])
    if op.primitive == "broadcast_in_dim":
        return _broadcast(op, fact, out)
    return moved(fact.view, shape, out.shape)


def _broadcast(op: Op, fact: Fact, out: Value) -> tuple[int | None, ...]:
    view: list[int | None] = [None] * len(out.shape)
    for k, target in enumerate(op.params["broadcast_dimensions"]):
        if op.inputs[0].shape[k] == out.shape[target]:
            view[target] = fact.view[k]
    return tuple(view)


def moved(
    view: tuple[int | None, ...], old: tuple[int, ...], new: tuple[int, ...]
) -> tuple[int | None, ...]:
    """The view after a reshape that only adds or removes dimensions of size one; else empty."""
    sized = [(n, axis) for n, axis in zip(old, view, strict=True) if n != 1]
    if [n for n, _ in sized] != [n for n in new if n != 1]:
        return ()
    rest = iter(sized)
    return tuple(None if n == 1 else next(rest)[1] for n in new)


def _enter(flow: Flow, op: Op, facts: Sequence[Fact]) -> None:
    """Into the bodies of scan and cond; a while loop is not looked into."""
    if op.primitive == "while":
        return
    for graph in op.bodies:
        for value, fact in _arguments(flow, op, graph, facts):
            flow.facts[id(value)] = fact
        _walk(flow, graph)


def _arguments(
    flow: Flow, op: Op, graph: Graph, facts: Sequence[Fact]
) -> Iterator[tuple[Value, Fact]]:
    """The body's inputs with what is known of them; a carry is a leaf on the first turn only."""
    if op.primitive == "cond":
        yield from zip(graph.inputs, facts[1:], strict=True)
        return
    n_consts, n_carry = scan_arity(op.params)
    dynamic = _carried(graph, n_consts, n_carry, [fact.dynamic for fact in facts])
    for k, (value, fact) in enumerate(zip(graph.inputs, facts, strict=True)):
        origins = flow.origin(value) if dynamic[k] else frozenset()
        if k < n_consts:
            yield value, replace(fact, origins=origins, loops=(*fact.loops, None))
        elif k < n_consts + n_carry:
            yield value, Fact(origins)
        else:
            loops = (*fact.loops, *fact.view[:1])
            yield value, replace(fact, origins=origins, view=fact.view[1:], loops=loops)


def _carried(graph: Graph, n_consts: int, n_carry: int, dynamic: list[bool]) -> list[bool]:
    """Which inputs of a scan's body depend on data, once the carry has gone round."""
    while True:
        flows = {id(value) for value, flag in zip(graph.inputs, dynamic, strict=True) if flag}
        for op in graph.flat:
            if any(id(value) in flows for value in op.inputs):
                flows |= {id(value) for value in op.outputs}
        carry = [id(value) in flows for value in graph.outputs[:n_carry]]
        around = [a or b for a, b in zip(dynamic[n_consts:], carry, strict=False)]
        if around == dynamic[n_consts : n_consts + n_carry]:
            return dynamic
        dynamic = [*dynamic[:n_consts], *around, *dynamic[n_consts + n_carry :]]
