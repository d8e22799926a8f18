"""The only file that touches jax's own jaxpr types, with the shims for their versions.

Supported: jax 0.6 (primitive `pjit`), 0.7 to 0.10 (`jit`), and 0.11 on, where open and closed
jaxprs are one class and `scan` describes its inputs by a tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
            bodies = tuple(build_graph(j, sources, scope, calls) for j in _jaxprs(eqn.params))
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
