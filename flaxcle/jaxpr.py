"""The only file that touches jaxprs: trace a function, look at it as a graph, run it with hooks.

`trace` turns any `fn(params, *inputs)` into a `Program`: a `Graph` of `Op`s between `Value`s. Calls
(jit, remat, custom_jvp, ...) stay as ops with a `body`, but share the caller's values, so that
`Graph.flat` is the whole function as one list. Loops and branches have bodies of their own.

Two interpreters read it: the abstract one (scale symbols, `discover`) walks `flat`; the concrete
one (`Program.run`) evaluates it with an `Action` at chosen ops (`calibrate`, `fake_quant`,
`expose_clips`, ...). The invariant: without actions, `run` computes exactly what `fn` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import jax
import jax.extend.core as core
import jax.numpy as jnp
from jax.extend import source_info_util

from flaxcle.errors import TraceError
from flaxcle.paths import PyTree, named_leaves, shape_of

LOOPS = ("scan", "while")
_BODY_KEYS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_REMAT = ("remat2", "remat", "checkpoint")


@dataclass(eq=False)
class Value:
    """One array that flows through the function; `const` is set for literals and closures."""

    shape: tuple[int, ...]
    dtype: Any
    const: Any = None

    @property
    def known(self) -> bool:
        """Whether the value does not depend on params or inputs."""
        return self.const is not None


@dataclass(eq=False)
class Op:
    """One equation.

    Attributes:
        primitive: its name, `'conv_general_dilated'`.
        params: its static parameters.
        inputs, outputs: the values.
        scope: module path (`'ResNet/Conv_0'`, empty for NNX) and `calls`, the named functions
            around it (`('relu6',)`).
        body: the ops of a call, sharing this graph's values.
        bodies: the graphs of a loop or of branches, with inputs of their own.
    """

    primitive: str
    params: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    scope: str
    calls: tuple[str, ...]
    eqn: Any = field(repr=False)
    sources: tuple[Any, ...] = field(repr=False, default=())
    body: tuple[Op, ...] | None = field(repr=False, default=None)
    bodies: tuple[Graph, ...] = field(repr=False, default=())

    @cached_property
    def source(self) -> str:
        """`file:line (function)` of the model's code; outer calls serve where jax hides it."""
        texts = (source_info_util.summarize(info) for info in reversed(self.sources))
        known = (text for text in texts if text and "<unknown>" not in text)
        return next(known, "")

    def bind(self, *operands: Any) -> list[Any]:
        """Runs the operation as jax recorded it."""
        bound = self.eqn.primitive.get_bind_params(dict(self.eqn.params))
        subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
        out = self.eqn.primitive.bind(*subfuns, *operands, **params)
        return list(out) if self.eqn.primitive.multiple_results else [out]


@dataclass(eq=False)
class Graph:
    """Ops in program order between input and output values."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    ops: tuple[Op, ...]

    @cached_property
    def flat(self) -> tuple[Op, ...]:
        """The ops that some output needs, calls inlined; loops and branches stay whole."""
        needed = {id(value) for value in self.outputs}
        live: list[Op] = []
        for op in reversed(list(_inline(self.ops))):
            if any(id(value) in needed for value in op.outputs) or op.eqn.effects:
                live.append(op)
                needed.update(id(value) for value in op.inputs)
        return tuple(reversed(live))


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
        return _run_graph(self.graph, leaves, _Reach(actions or {}), feed or {})

    def unflatten(self, outputs: Sequence[Any]) -> PyTree:
        """The output tree from flat outputs."""
        return jax.tree.unflatten(self.out_tree, outputs)


def trace(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> Program:
    """Traces `fn(params, *inputs)`; leaves may be arrays, tracers or ShapeDtypeStructs.

    Raises:
        TraceError: no output depends on any param (they are captured by closure, say).
    """
    leaves, in_tree = jax.tree.flatten((params, tuple(inputs)))

    def flat_fn(*flat: Any) -> Any:
        p, args = jax.tree.unflatten(in_tree, flat)
        return fn(p, *args)

    closed, out_shape = jax.make_jaxpr(flat_fn, return_shape=True)(*leaves)
    graph = _build_closed(closed, (), "", ())
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


def _open(jaxpr: Any) -> Any:
    """The open jaxpr; from jax 0.11 on, open and closed are one class."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _is_jaxpr(item: Any) -> bool:
    return hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns")


def scan_arity(params: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of constants and carries of a scan; jax 0.11 keeps them as a tree of its inputs."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    tree = getattr(params.get("ft_in"), "tree", None)
    if tree is None or len(tree.children()) != 3:
        raise TraceError(
            "this version of jax describes scan in an unknown way",
            where=f"jax {jax.__version__}, scan parameters {sorted(params)}",
            then="use a jax version of flaxcle's supported range",
        )
    consts, carry, _ = tree.children()
    return consts.num_leaves, carry.num_leaves


def _build_closed(closed: Any, sources: tuple[Any, ...], scope: str, calls: tuple[str, ...]) -> Graph:
    """A graph with input values of its own."""
    jaxpr = _open(closed)
    env: dict[Any, Value] = {var: _fresh(var) for var in jaxpr.invars}
    ops = _build_ops(closed, env, sources, scope, calls)
    outputs = tuple(_read(atom, env) for atom in jaxpr.outvars)
    return Graph(tuple(env[var] for var in jaxpr.invars), outputs, ops)


def _fresh(var: Any) -> Value:
    return Value(tuple(getattr(var.aval, "shape", ())), getattr(var.aval, "dtype", None))


def _read(atom: Any, env: Mapping[Any, Value]) -> Value:
    if isinstance(atom, core.Literal):
        return Value(tuple(atom.aval.shape), atom.aval.dtype, atom.val)
    return env[atom]


def _build_ops(
    closed: Any, env: dict[Any, Value], sources: tuple[Any, ...], scope: str, calls: tuple[str, ...]
) -> tuple[Op, ...]:
    jaxpr = _open(closed)
    for var, const in zip(jaxpr.constvars, getattr(closed, "consts", ()), strict=False):
        env[var] = Value(shape_of(const), const.dtype, const)
    return tuple(_build_op(eqn, env, sources, scope, calls) for eqn in jaxpr.eqns)


def _build_op(
    eqn: Any, env: dict[Any, Value], sources: tuple[Any, ...], scope: str, calls: tuple[str, ...]
) -> Op:
    inputs = tuple(_read(atom, env) for atom in eqn.invars)
    sources = (*sources, eqn.source_info)
    scope = "/".join(part for part in (scope, str(eqn.source_info.name_stack)) if part)
    name = eqn.primitive.name
    callee = _callee(eqn)
    body, bodies = None, ()
    if callee is not None:
        label = eqn.params.get("name")
        inner_calls = (*calls, label) if isinstance(label, str) else calls
        inner = dict(zip(_open(callee).invars, inputs, strict=True))
        body = _build_ops(callee, inner, sources, scope, inner_calls)
        results = [_read(atom, inner) for atom in _open(callee).outvars]
        env.update(zip(eqn.outvars, results, strict=True))
    else:
        env.update({var: _fresh(var) for var in eqn.outvars})
        if name in (*LOOPS, "cond"):
            bodies = tuple(_build_closed(j, sources, scope, calls) for j in _jaxprs(eqn.params))
    outputs = tuple(env[var] for var in eqn.outvars)
    return Op(name, eqn.params, inputs, outputs, scope, calls, eqn, sources, body, bodies)


def _callee(eqn: Any) -> Any:
    """The jaxpr of a call: the only one in the params, with the equation's own arity."""
    if eqn.primitive.name in (*LOOPS, "cond", "shard_map", "pallas_call"):
        return None
    found = [eqn.params[key] for key in _BODY_KEYS if _is_jaxpr(eqn.params.get(key))]
    if len(found) != 1 or len(_open(found[0]).invars) != len(eqn.invars):
        return None
    return found[0] if len(_open(found[0]).outvars) == len(eqn.outvars) else None


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs of a loop (a while's condition first) or of all branches."""
    for key in ("jaxpr", "cond_jaxpr", "body_jaxpr"):
        if key in params:
            yield params[key]
    yield from params.get("branches", ())


def _inline(ops: Sequence[Op]) -> Iterator[Op]:
    for op in ops:
        if op.body is None:
            yield op
        else:
            yield from _inline(op.body)


class _Reach:
    """The actions, and which ops hold one somewhere inside; the others are bound whole."""

    def __init__(self, actions: Actions) -> None:
        self.actions = actions
        self._feeds: dict[Op, tuple[str, ...]] = {}

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
            self._feeds[op] = flat if hit else None  # pyright: ignore[reportArgumentType]
        return self._feeds[op]


class _Env(dict[int, Any]):
    """Values at run time, by identity."""

    def read(self, value: Value) -> Any:
        return value.const if value.known else self[id(value)]

    def write(self, values: Sequence[Value], arrays: Sequence[Any]) -> None:
        for value, array in zip(values, arrays, strict=True):
            if not value.known:
                self[id(value)] = array


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
    elif op.primitive in _REMAT:
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
