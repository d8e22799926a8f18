"""The concrete interpreter: a program evaluated with an action at chosen ops.

The invariant: without actions it computes exactly what the traced function does; calls that hold
no action are bound whole, so their custom derivatives and rematerialisation stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from flaxcle.errors import TraceError
from flaxcle.jaxpr.graph import REMAT, Graph, Op, Value
from flaxcle.jaxpr.trace import scan_arity


class Action(Protocol):
    """What to do at an op instead of just running it.

    `feeds` names the arrays of `feed` that it reads. Inside `scan` each of them has a leading
    axis per enclosing scan, of which the action sees one slice; taps get such an axis.
    """

    feeds: tuple[str, ...]

    def __call__(
        self, op: Op, operands: list[Any], feed: Mapping[str, Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """Returns the op's outputs and the taps (named float arrays) to report."""
        ...


Actions = Mapping[Op, Action]


class Result(NamedTuple):
    """What `Program.run` returns: flat outputs and taps."""

    outputs: list[Any]
    taps: dict[str, Any]


class _Reach:
    """The actions, and which ops hold one somewhere inside; the others are bound whole."""

    def __init__(self, actions: Actions) -> None:
        self.actions = actions
        self._feeds: dict[Op, tuple[str, ...] | None] = {}

    def touches(self, op: Op) -> bool:
        return op in self.actions or self._feeds_of(op) is not None

    def feeds(self, op: Op) -> tuple[str, ...]:
        """Names of all the arrays that the actions inside the op read."""
        return self._feeds_of(op) or ()

    def _feeds_of(self, op: Op) -> tuple[str, ...] | None:
        if op not in self._feeds:
            inner = (*(op.body or ()), *(o for graph in op.bodies for o in graph.ops))
            found = [self._feeds_of(o) for o in inner]
            own = [self.actions[op].feeds] if op in self.actions else []
            hit = [*own, *(names for names in found if names is not None)]
            flat = tuple(dict.fromkeys(name for names in hit for name in names))
            self._feeds[op] = flat if hit else None
        return self._feeds[op]


class _Env(dict[int, Any]):
    """Values at run time, by identity."""

    def read(self, value: Value) -> Any:
        return value.const if value.known else self[id(value)]

    def write(self, values: Sequence[Value], arrays: Sequence[Any]) -> None:
        for value, array in zip(values, arrays, strict=True):
            if not value.known:
                self[id(value)] = array


def run_graph(
    graph: Graph, args: Sequence[Any], actions: Actions, feed: Mapping[str, Any]
) -> Result:
    """Evaluates the graph on flat arguments; all outputs are arrays, constant ones too."""
    outputs, taps = _run_graph(graph, args, _Reach(actions), feed)
    return Result([jnp.asarray(out) for out in outputs], taps)


def _run_graph(graph: Graph, args: Sequence[Any], reach: _Reach, feed: Mapping[str, Any]) -> Result:
    env = _Env()
    env.write(graph.inputs, args)
    taps = _run_ops(graph.ops, env, reach, feed)
    return Result([env.read(value) for value in graph.outputs], taps)


def _run_ops(
    ops: Sequence[Op], env: _Env, reach: _Reach, feed: Mapping[str, Any]
) -> dict[str, Any]:
    taps: dict[str, Any] = {}
    for op in ops:
        taps.update(_run_op(op, env, reach, feed))
    return taps


def _run_op(op: Op, env: _Env, reach: _Reach, feed: Mapping[str, Any]) -> dict[str, Any]:
    operands = [env.read(value) for value in op.inputs]
    if op in reach.actions:
        outputs, taps = reach.actions[op](op, operands, feed)
    elif not reach.touches(op):
        outputs, taps = op.bind(*operands), {}
    elif op.primitive == "scan":
        outputs, taps = _run_scan(op, operands, reach, feed)
    elif op.primitive == "cond":
        outputs, taps = _run_cond(op, operands, reach, feed)
    elif op.primitive in REMAT:
        outputs, taps = _run_remat(op, operands, reach, feed)
    elif op.body is not None:
        return _run_ops(op.body, env, reach, feed)
    else:
        raise TraceError(f"can't put an action inside {op.primitive!r}", where=op.source)
    env.write(op.outputs, outputs)
    return taps


def _run_scan(op: Op, operands: list[Any], reach: _Reach, feed: Mapping[str, Any]) -> Any:
    n_consts, n_carry = scan_arity(op.params)
    consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
    sliced = {name: feed[name] for name in reach.feeds(op)}

    def step(state: Any, x: Any) -> Any:
        xs, local = x
        out = _run_graph(op.bodies[0], [*consts, *state, *xs], reach, {**feed, **local})
        return out.outputs[:n_carry], (out.outputs[n_carry:], out.taps)

    carry, (ys, taps) = jax.lax.scan(
        step,
        carry,
        (operands[n_consts + n_carry :], sliced),
        length=op.params["length"],
        reverse=op.params["reverse"],
        unroll=op.params["unroll"],
    )
    return [*carry, *ys], taps


def _run_cond(op: Op, operands: list[Any], reach: _Reach, feed: Mapping[str, Any]) -> Any:
    """Runs every branch with its taps; the taps of branches not taken are NaN."""
    index, args = operands[0], operands[1:]
    run = [lambda *a, g=graph: _run_graph(g, a, reach, feed) for graph in op.bodies]
    shapes = {}
    for branch in run:
        shapes.update(jax.eval_shape(branch, *args).taps)

    def filled(branch: Callable[..., Result]) -> Callable[..., Any]:
        def call(*a: Any) -> Any:
            out = branch(*a)
            missing = {k: jnp.full(s.shape, jnp.nan, s.dtype) for k, s in shapes.items()}
            return out.outputs, {**missing, **out.taps}

        return call

    return jax.lax.switch(index, [filled(branch) for branch in run], *args)


def _run_remat(op: Op, operands: list[Any], reach: _Reach, feed: Mapping[str, Any]) -> Any:
    def call(args: list[Any], local: Mapping[str, Any]) -> Any:
        env = _Env()
        env.write(op.inputs, args)
        taps = _run_ops(op.body or (), env, reach, local)
        return [env.read(value) for value in op.outputs], taps

    policy, prevent_cse = op.params.get("policy"), op.params.get("prevent_cse", True)
    return jax.checkpoint(call, policy=policy, prevent_cse=prevent_cse)(operands, dict(feed))
