"""The shims for other versions of jax, on fakes: what 0.6, 0.9.1, 0.11 and 0.12 would hand us."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.errors import TraceError
from flaxcle.jaxpr import Op
from flaxcle.jaxpr.graph import REMAT
from flaxcle.jaxpr.trace import build_graph, scan_arity


class Packed:
    """0.11's description of a scan's inputs: parts that have a length, and no tree of their own."""

    def __init__(self, *parts: tuple[None, ...]) -> None:
        self.parts = parts

    @property
    def tree(self) -> None:
        raise AssertionError("subclass should implement")

    def unpack(self) -> tuple[tuple[None, ...], ...]:
        return self.parts


def test_scan_arity_in_0_10() -> None:
    jaxpr = jax.make_jaxpr(lambda x, w: jax.lax.scan(lambda c, v: (c + x * v, c), x, w))(
        1.0, jnp.ones(3)
    )
    assert scan_arity(jaxpr.eqns[-1].params) == (1, 1)


def test_scan_arity_in_0_11() -> None:
    packed = Packed((None,) * 2, (None,) * 3, (None,))
    assert scan_arity({"ft_in": packed}) == (2, 3)


@pytest.mark.parametrize("params", [{"length": 3}, {"ft_in": Packed((None,))}, {"ft_in": None}])
def test_an_unknown_description_of_scan_is_an_error(params: dict[str, Any]) -> None:
    with pytest.raises(TraceError) as error:
        scan_arity(params)
    text = str(error.value)
    assert text.startswith("this version of jax describes scan in an unknown way: jax ")
    assert f"scan parameters {sorted(params)}" in text
    assert text.endswith("What to do: use a jax version of flaxcle's supported range.")


@dataclass(eq=False)
class Var:
    aval: Any


@dataclass
class Jaxpr:
    """Open and closed in one, as from 0.11 on; `jaxpr` may be itself, or not exist."""

    invars: list[Var]
    outvars: list[Var]
    eqns: list[Any] = field(default_factory=list)
    constvars: list[Var] = field(default_factory=list)
    consts: list[Any] = field(default_factory=list)


class ClosedJaxpr(Jaxpr):
    """The older name, which 0.11 keeps."""

    @property
    def jaxpr(self) -> ClosedJaxpr:
        return self


def equation(primitive: str, invars: list[Var], outvars: list[Var], **params: Any) -> Any:
    info = SimpleNamespace(name_stack="", traceback=None)
    return SimpleNamespace(
        primitive=SimpleNamespace(name=primitive),
        invars=invars,
        outvars=outvars,
        params=params,
        source_info=info,
        effects=(),
    )


def vector() -> Var:
    return Var(jax.ShapeDtypeStruct((3,), jnp.float32))


@pytest.mark.parametrize("kind", [Jaxpr, ClosedJaxpr])
@pytest.mark.parametrize(
    ("call", "key"),
    [
        ("pjit", "jaxpr"),
        ("jit", "jaxpr"),
        ("checkpoint", "jaxpr"),
        ("closed_call", "call_jaxpr"),
        ("eval_jaxpr", "jaxpr"),
        ("custom_vjp_call_jaxpr", "fun_jaxpr"),
    ],
)
def test_calls_are_known_by_their_shape(kind: Any, call: str, key: str) -> None:
    x, y, inner_x, inner_y, const = (vector() for _ in range(5))
    sine = equation("add", [inner_x, const], [inner_y])
    body = kind([inner_x], [inner_y], [sine], [const], [np.ones(3, np.float32)])
    outer = kind([x], [y], [equation(call, [x], [y], **{key: body}, name="block")])
    graph = build_graph(outer)
    (op,) = graph.flat
    assert (op.primitive, op.calls) == ("add", ("block",))
    assert op.inputs[0] is graph.inputs[0]
    assert op.outputs == graph.outputs
    np.testing.assert_array_equal(op.inputs[1].const, 1)


def test_remat_has_had_three_names() -> None:
    assert set(REMAT) == {"remat", "remat2", "checkpoint"}
    jaxpr = jax.make_jaxpr(jax.checkpoint(jnp.sin))(1.0)
    assert jaxpr.eqns[0].primitive.name in REMAT


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("style", ["tuple", "dict"])
def test_bind_params_come_as_a_tuple_or_as_a_dict(style: str, several: bool) -> None:
    """Up to jax 0.9.1 `get_bind_params` gives (functions, params), later only params."""

    def bind(*args: Any, **params: Any) -> Any:
        functions, operands = (args[:1], args[1:]) if style == "tuple" else ((), args)
        assert params == {"axis": 1}
        assert [f(2) for f in functions] == ([3] if style == "tuple" else [])
        return list(operands) if several else operands[0]

    functions = [lambda x: x + 1]
    primitive = SimpleNamespace(
        get_bind_params=lambda params: (functions, params) if style == "tuple" else params,
        bind=bind,
        multiple_results=several,
    )
    eqn = SimpleNamespace(primitive=primitive, params={"axis": 1})
    op = Op("call", eqn.params, (), (), "", (), eqn)
    assert op.bind(5.0) == [5.0]
