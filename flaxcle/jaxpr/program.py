"""A traced function and its params by name: what every room that looks inside a model holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from flaxcle.errors import TraceError
from flaxcle.jaxpr.graph import Graph, Value
from flaxcle.jaxpr.run import Actions, Result, run_graph
from flaxcle.jaxpr.trace import build_graph, make_jaxpr
from flaxcle.paths import PyTree, check_arrays, named_leaves


@dataclass(eq=False)
class Program:
    """A traced function.

    Attributes:
        graph: its ops; `graph.inputs` are the params' leaves, then the inputs' leaves.
        params: leaf path -> value, in flatten order.
        inputs: the values of the inputs' leaves.
        out_tree: structure of the output.
    """

    graph: Graph
    params: dict[str, Value]
    inputs: tuple[Value, ...]
    out_tree: Any
    in_tree: Any

    def run(
        self,
        params: PyTree,
        inputs: Sequence[Any],
        actions: Actions | None = None,
        feed: Mapping[str, Any] | None = None,
    ) -> Result:
        """Evaluates the program with an action at chosen ops.

        Raises:
            TraceError: params or inputs have another structure than those that were traced.
        """
        leaves, tree = jax.tree.flatten((params, tuple(inputs)))
        if tree != self.in_tree:
            raise TraceError(
                "params or inputs have another structure than the traced ones",
                where=f"got {tree}",
                then=f"pass {self.in_tree}",
            )
        return run_graph(self.graph, leaves, actions or {}, feed or {})

    def unflatten(self, outputs: Sequence[Any]) -> PyTree:
        """The output tree from flat outputs."""
        return jax.tree.unflatten(self.out_tree, outputs)


def trace(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> Program:
    """Traces `fn(params, *inputs)`; leaves may be arrays, tracers or ShapeDtypeStructs.

    Raises:
        TraceError: a param is no array, or no output depends on any (they are captured by
            closure, say).
    """
    check_arrays(params)
    leaves, in_tree = jax.tree.flatten((params, tuple(inputs)))

    def flat_fn(*flat: Any) -> Any:
        p, args = jax.tree.unflatten(in_tree, flat)
        return fn(p, *args)

    closed, out_shape = make_jaxpr(flat_fn, leaves)
    graph = build_graph(closed)
    names = list(named_leaves(params))
    program = Program(
        graph,
        dict(zip(names, graph.inputs, strict=False)),
        graph.inputs[len(names) :],
        jax.tree.structure(out_shape),
        in_tree,
    )
    _check_dependence(program)
    return program


def _check_dependence(program: Program) -> None:
    used = {id(value) for op in program.graph.flat for value in op.inputs}
    used |= {id(value) for value in program.graph.outputs}
    if program.params and not any(id(value) in used for value in program.params.values()):
        raise TraceError(
            "no output depends on any leaf of params",
            where=f"{len(program.params)} leaves, the first is {next(iter(program.params))!r}",
            then="use the params that fn receives; don't capture them from an outer scope",
        )
