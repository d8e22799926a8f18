"""Actions for tests, and how to find the ops to put them on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp

from flaxcle.jaxpr import Graph, Op, Program

CONTRACTIONS = ("conv_general_dilated", "dot_general")


class Identity:
    """Runs the op and nothing else."""

    feeds: tuple[str, ...] = ()

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        return op.bind(*operands), {}


class Mean:
    """Reports the mean of the op's first result."""

    feeds: tuple[str, ...] = ()

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        outputs = op.bind(*operands)
        return outputs, {self.name: jnp.mean(outputs[0])}


class Add:
    """Adds an array of the feed to the op's first result."""

    def __init__(self, name: str) -> None:
        self.feeds = (name,)

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        first, *rest = op.bind(*operands)
        return [first + feed[self.feeds[0]], *rest], {}


def every_op(graph: Graph) -> Iterator[Op]:
    """All live ops, those of scans and branches included; while loops stay closed."""
    for op in graph.flat:
        yield op
        for body in op.bodies if op.primitive != "while" else ():
            yield from every_op(body)


def ops_called(program: Program, *names: str) -> list[Op]:
    """The live ops of these primitives."""
    return [op for op in every_op(program.graph) if op.primitive in names]


def op_called(program: Program, name: str) -> Op:
    """The only live op of this primitive."""
    (op,) = ops_called(program, name)
    return op
