"""The only file that touches jax's own jaxpr types, with the shims for their versions.

Supported: jax 0.6 (primitive `pjit`), 0.7 to 0.10 (`jit`), and 0.11 on, where open and closed
jaxprs are one class and `scan` packs the numbers of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.extend.core as core

from flaxcle.errors import TraceError
from flaxcle.jaxpr.graph import LOOPS, Graph, Op, Value
from flaxcle.paths import shape_of

_BODY_KEYS = ("jaxpr", "call_jaxpr", "fun_jaxpr")


def _open(jaxpr: Any) -> Any:
    """The open jaxpr; from jax 0.11 on, open and closed are one class."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _is_jaxpr(item: Any) -> bool:
    return hasattr(item, "eqns") or hasattr(getattr(item, "jaxpr", None), "eqns")


def scan_arity(params: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of constants and carries of a scan; since jax 0.11 they are packs of its inputs."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    unpack = getattr(params.get("ft_in"), "unpack", tuple)
    parts = tuple(unpack())
    if len(parts) != 3:
        raise TraceError(
            "this version of jax describes scan in an unknown way",
            where=f"jax {jax.__version__}, scan parameters {sorted(params)}",
            then="use a jax version of flaxcle's supported range",
        )
    return len(parts[0]), len(parts[1])


def make_jaxpr(fn: Callable[..., Any], leaves: list[Any]) -> tuple[Any, Any]:
    """The closed jaxpr of `fn(*leaves)` and its output's tree of shapes."""
    return jax.make_jaxpr(fn, return_shape=True)(*leaves)


def build_graph(
    closed: Any, sources: tuple[Any, ...] = (), scope: str = "", calls: tuple[str, ...] = ()
) -> Graph:
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
        return replace(_fresh(atom), const=atom.val)
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
    op = partial(Op, name, eqn.params, inputs, scope=scope, calls=calls, eqn=eqn, sources=sources)
    callee = _callee(eqn)
    if callee is not None:
        body, outputs = _enter(eqn, callee, inputs, sources, scope, calls)
        env.update(zip(eqn.outvars, outputs, strict=True))
        return op(outputs, body=body)
    outputs = tuple(_fresh(var) for var in eqn.outvars)
    env.update(zip(eqn.outvars, outputs, strict=True))
    inside = _jaxprs(eqn.params) if name in (*LOOPS, "cond", "shard_map") else ()
    return op(outputs, bodies=tuple(build_graph(j, sources, scope, calls) for j in inside))


def _enter(
    eqn: Any,
    callee: Any,
    inputs: tuple[Value, ...],
    sources: tuple[Any, ...],
    scope: str,
    calls: tuple[str, ...],
) -> tuple[tuple[Op, ...], tuple[Value, ...]]:
    """The ops of a call's body on the caller's values, and its results."""
    label = eqn.params.get("name")
    calls = (*calls, label) if isinstance(label, str) else calls
    inner = dict(zip(_open(callee).invars, inputs, strict=True))
    body = list(_build_ops(callee, inner, sources, scope, calls))
    results = [_read(atom, inner) for atom in _open(callee).outvars]
    if eqn.primitive.name.startswith("custom"):
        _copy_repeated(body, inputs, results, (scope, calls, sources))
    return tuple(body), tuple(results)


def _copy_repeated(
    body: list[Op], inputs: tuple[Value, ...], results: list[Value], place: Any
) -> None:
    """Results that are no values of their own get one: a custom derivative belongs to the result.

    `y + call(y)` must not read one value on both sides when `call` hands `y` on.
    """
    scope, calls, sources = place
    seen = {id(value) for value in inputs}
    for k, value in enumerate(results):
        if id(value) in seen or value.known:
            results[k] = Value(value.shape, value.dtype)
            struct = jax.ShapeDtypeStruct(value.shape, value.dtype)
            eqn = jax.make_jaxpr(core.primitives.copy_p.bind)(struct).eqns[0]
            body.append(Op("copy", {}, (value,), (results[k],), scope, calls, eqn, sources))
        seen.add(id(results[k]))


def _callee(eqn: Any) -> Any:
    """The jaxpr of a call: the only one in the params, on just the equation's arrays.

    The body of `lax.reduce` is no call: it takes as many arguments, but scalars.
    """
    if eqn.primitive.name in (*LOOPS, "cond", "shard_map", "pallas_call"):
        return None
    found = [eqn.params[key] for key in _BODY_KEYS if _is_jaxpr(eqn.params.get(key))]
    if len(found) != 1:
        return None
    jaxpr = _open(found[0])
    fits = _kinds(jaxpr.invars) == _kinds(eqn.invars)
    return found[0] if fits and _kinds(jaxpr.outvars) == _kinds(eqn.outvars) else None


def _kinds(atoms: Sequence[Any]) -> list[Any]:
    return [(getattr(a.aval, "shape", None), getattr(a.aval, "dtype", None)) for a in atoms]


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs of a loop (a while's condition first) or of all branches."""
    for key in ("jaxpr", "cond_jaxpr", "body_jaxpr"):
        if key in params:
            yield params[key]
    yield from params.get("branches", ())
