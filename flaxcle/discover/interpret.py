"""The abstract interpreter: runs a program on scales instead of arrays.

The invariant: an operation whose operands carry no scale needs no rule, and one without a rule
pins whatever scale it meets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flaxcle.jaxpr import Graph, Op, Program, Value
from flaxcle.rules import RULES
from flaxcle.rules.box import Irregular
from flaxcle.rules.constants import Constants
from flaxcle.rules.context import Context, Why, literal, shape_of
from flaxcle.rules.scale import PLAIN, Scale


class Interpreter:
    """Holds the context; values of nested graphs live in environments of their own."""

    def __init__(self) -> None:
        self.context = Context(self.run, self.step, Constants())

    def run(self, graph: Graph, args: Sequence[Scale]) -> list[Scale]:
        """Interprets a graph on the scales of its inputs."""
        env = {id(value): arg for value, arg in zip(graph.inputs, args, strict=True)}
        for op in graph.flat:
            operands = [self._read(value, env) for value in op.inputs]
            for value, result in zip(op.outputs, self.step(op, operands), strict=True):
                env[id(value)] = result
        return [self._read(value, env) for value in graph.outputs]

    def _read(self, value: Value, env: dict[int, Scale]) -> Scale:
        return literal(value, self.context) if value.known else env[id(value)]

    def step(self, op: Op, args: list[Scale]) -> Sequence[Scale]:
        """Interprets one operation on the scales of its operands."""
        if all(not arg.terms for arg in args):
            self.context.constants.learn(op)
        if all(arg.plain for arg in args) and not op.bodies:
            return [PLAIN] * len(op.outputs)
        rule = RULES.get(op.primitive)
        if rule is not None:
            try:
                return rule(op, args, self.context)
            except Irregular:
                return self._pinned(op, args, "irregular")
        if any(arg.terms for arg in args):
            self.context.unknown.append(op)
        return self._pinned(op, args, "unknown")

    def _pinned(self, op: Op, args: list[Scale], kind: str) -> Sequence[Scale]:
        for value, arg in zip(op.inputs, args, strict=True):
            self.context.pin(arg, shape_of(value), Why(kind, op))
        return [PLAIN] * len(op.outputs)


def state(program: Program, interpreter: Interpreter, scales: Mapping[str, Scale]) -> None:
    """States all equations of a program whose leaves carry these scales."""
    args = [scales[path] for path in program.params] + [PLAIN] * len(program.inputs)
    outputs = interpreter.run(program.graph, args)
    for value, result in zip(program.graph.outputs, outputs, strict=True):
        interpreter.context.pin(result, shape_of(value), Why("output"))
