"""Which contractions read which param leaf, and the leaf as a stack of matrices, as they see it.

A leaf becomes (layers, groups, outputs, inputs): layers are the turns of the scans that run along
it, groups the batch dimensions of a dot_general or the feature groups of a convolution, inputs
what is summed over (taps first), outputs the channels. The invariant: only a leaf that nothing but
contractions read, all of them in the same arrangement, has a stack; to round any other would
change what no quantizer rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import jax

from flaxcle.jaxpr import Graph, Op, Program
from flaxcle.jaxpr.trace import scan_arity
from flaxcle.quantize.flow import LAYOUT, Fact, Flow
from flaxcle.quantize.plan import Plan, channel_axes, make_plan

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stack:
    """A leaf as a stack of matrices.

    Attributes:
        order: the leaf's axes of more than one position: of layers, groups, outputs, inputs.
        shape: (layers, groups, outputs, inputs).
        dtype: what the contraction reads, after a cast.
    """

    order: Shape
    shape: Shape
    dtype: Any

    def of(self, leaf: jax.Array) -> jax.Array:
        """The leaf as the contraction sees it, as a stack."""
        ones = [axis for axis in range(leaf.ndim) if axis not in self.order]
        return leaf.transpose(*self.order, *ones).reshape(self.shape).astype(self.dtype)

    def back(self, stack: jax.Array, leaf: jax.Array) -> jax.Array:
        """The leaf that has this stack."""
        ones = [axis for axis in range(leaf.ndim) if axis not in self.order]
        order = [*self.order, *ones]
        placed = stack.reshape([leaf.shape[axis] for axis in order])
        return placed.transpose([order.index(axis) for axis in range(leaf.ndim)])


@dataclass(frozen=True)
class Reader:
    """A contraction with a weight that can be rounded.

    Attributes:
        name: unique, the key of its moments.
        operand: which operand is the weight.
        leaf, stack: the weight and its arrangement.
        shared: per enclosing scan whether every turn reads the same weight.
    """

    name: str
    operand: int
    leaf: str
    stack: Stack
    shared: tuple[bool, ...]


def find_readers(program: Program) -> dict[Op, Reader]:
    """The contractions whose weights can be rounded, in program order."""
    plan = make_plan(program)
    blocked = set(_read_elsewhere(program, plan))
    found: dict[Op, Reader] = {}
    stacks: dict[str, Stack] = {}
    for op, operand, fact in plan.weights():
        leaf = fact.leaf or ""
        stack = _stack(op, operand, fact, program.params[leaf].shape)
        if stack is None or stacks.setdefault(leaf, stack) != stack:
            blocked.add(leaf)
        else:
            shared = tuple(axis is None for axis in fact.loops)
            found[op] = Reader(f"{leaf}+{len(found)}", operand, leaf, stack, shared)
    return {op: reader for op, reader in found.items() if reader.leaf not in blocked}


def _read_elsewhere(program: Program, plan: Plan) -> Iterator[str]:
    """Leaves that something other than a contraction, or a layout on the way to one, reads."""
    flow = plan.flow
    yield from _returned(program.graph, flow)
    for op in flow.ops:
        rounded = {k for k, quantizer in plan.at.get(op, {}).items() if quantizer.weight}
        for k, value in enumerate(op.inputs):
            leaf = flow[value].leaf
            if leaf and k not in rounded and not _hands_on(op, k):
                yield leaf
        for graph in op.bodies:
            yield from _returned(graph, flow)


def _returned(graph: Graph, flow: Flow) -> Iterator[str]:
    for value in graph.outputs:
        leaf = flow[value].leaf
        if leaf:
            yield leaf


def _hands_on(op: Op, operand: int) -> bool:
    """Whether the op changes nothing but the layout, or gives the operand to its body."""
    if op.primitive == "scan":
        n_consts, n_carry = scan_arity(op.params)
        return not n_consts <= operand < n_consts + n_carry
    return op.primitive in LAYOUT or (op.primitive == "cond" and operand > 0)


def _stack(op: Op, operand: int, fact: Fact, shape: Shape) -> Stack | None:
    """The leaf's arrangement; None where the operand is more than a transposition of it."""
    value, arranged = op.inputs[operand], _arrange(op, operand)
    if arranged is None or len(fact.view) != len(value.shape):
        return None
    dims, groups, outputs, inputs = arranged
    loops = [axis for axis in fact.loops if axis is not None]
    axes = [*loops, *(fact.view[d] for d in dims if value.shape[d] != 1)]
    order = tuple(axis for axis in axes if axis is not None and shape[axis] != 1)
    if None in axes or sorted(order) != [axis for axis, n in enumerate(shape) if n != 1]:
        return None
    layers = prod(shape[axis] for axis in loops)
    return Stack(order, (layers, groups, outputs, inputs), value.dtype)


def _arrange(op: Op, operand: int) -> tuple[Shape, int, int, int] | None:
    """The weight's dimensions as groups, outputs, inputs, and the size of each of these."""
    shape = op.inputs[operand].shape
    if op.primitive == "conv_general_dilated":
        if operand == 0 or op.params["batch_group_count"] != 1:
            return None
        out, features, *taps = op.params["dimension_numbers"].rhs_spec
        groups = op.params["feature_group_count"]
        dims = (out, *taps, features)
        return dims, groups, shape[out] // groups, prod(shape[d] for d in dims[1:])
    contracted, batch = (dims[operand] for dims in op.params["dimension_numbers"])
    free = [d for d in channel_axes(op, operand) if d not in batch]
    sizes = [prod(shape[d] for d in dims) for dims in (batch, free, contracted)]
    return (*batch, *free, *contracted), sizes[0], sizes[1], sizes[2]
