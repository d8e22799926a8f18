"""What a traced function shows: its ops and where they come from; and what can't be traced."""

from __future__ import annotations

import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.errors import TraceError
from flaxcle.jaxpr import Program, trace
from jaxpr.probes import op_called, ops_called
from zoo import build

W, X = jnp.ones((2, 2)), jnp.ones((3, 2))


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu6(nn.Dense(2)(x))  # the line of the model


class Outer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Inner(name="first")(x) + 1.0


@pytest.fixture(scope="module")
def linen() -> Program:
    variables = jax.eval_shape(Outer().init, jax.random.key(0), X)
    return trace(Outer().apply, variables, X)


def test_params_are_values_by_path(linen: Program) -> None:
    assert list(linen.params) == [
        "params/first/Dense_0/bias",
        "params/first/Dense_0/kernel",
    ]
    kernel = linen.params["params/first/Dense_0/kernel"]
    assert kernel in op_called(linen, "dot_general").inputs
    assert linen.inputs == linen.graph.inputs[2:]


def test_scope_names_the_module_and_calls_the_functions(linen: Program) -> None:
    assert op_called(linen, "dot_general").scope == "Outer/first/Dense_0"
    low, high = op_called(linen, "max"), op_called(linen, "min")
    assert low.scope == high.scope == "Outer/first"
    assert low.calls == high.calls == ("relu6",)
    assert op_called(linen, "dot_general").calls == ()


def test_source_is_the_models_own_line(linen: Program) -> None:
    lines, start = inspect.getsourcelines(Inner)
    line = start + next(k for k, text in enumerate(lines) if "the line of the model" in text)
    for name in ("dot_general", "min"):  # written in Flax and in jax, called in the model
        assert op_called(linen, name).source == f"test_trace.py:{line} (Inner.__call__)"


def test_scope_and_source_reach_into_loops() -> None:
    network = build("scan_stack")
    op = ops_called(trace(network.fn, network.params, *network.inputs), "dot_general")[0]
    assert op.scope
    assert op.source.startswith("shared.py:")


def test_nnx_has_no_scope_but_a_source() -> None:
    network = build("mlp_nnx")
    op = ops_called(trace(network.fn, network.params, *network.inputs), "dot_general")[0]
    assert op.scope == ""
    assert op.source.startswith("nnx_nets.py:")


@pytest.mark.parametrize(
    "wrap",
    [jax.jit, jax.checkpoint, jax.named_call, lambda f: jax.jit(jax.checkpoint(jax.jit(f)))],
)
def test_calls_are_inlined_in_flat(wrap: Any) -> None:
    program = trace(lambda p, x: wrap(lambda y: jnp.sin(y @ p))(x) + 1, W, X)
    assert [op.primitive for op in program.graph.flat] == ["dot_general", "sin", "add"]
    first, second, _ = program.graph.flat
    assert first.outputs[0] is second.inputs[0]
    assert program.params[""] is first.inputs[1]


def test_custom_derivatives_are_inlined_in_flat() -> None:
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda primals, tangents: (jnp.sin(*primals), *tangents))
    cosine = jax.custom_vjp(jnp.cos)
    cosine.defvjp(lambda x: (jnp.cos(x), None), lambda _, g: (g,))
    program = trace(lambda p, x: cosine(sine(x @ p)), W, X)
    assert [op.primitive for op in program.graph.flat] == ["dot_general", "sin", "cos"]


def test_flat_drops_what_no_output_needs() -> None:
    @jax.jit
    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.sin(x), jnp.cos(x)

    def fn(p: jax.Array, x: jax.Array) -> jax.Array:
        jnp.tan(x @ p)
        return both(x @ p)[0]

    program = trace(fn, W, X)
    assert {op.primitive for op in program.graph.ops} == {"dot_general", "tan", "jit"}
    assert [op.primitive for op in program.graph.flat] == ["dot_general", "sin"]


def test_flat_keeps_effects(capsys: pytest.CaptureFixture[str]) -> None:
    def fn(p: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.print("seen {}", x.sum())
        return x @ p

    program = trace(fn, W, X)
    assert len(program.graph.flat) == 3
    program.run(W, (X,))
    jax.effects_barrier()
    assert capsys.readouterr().out == "seen 6.0\n"


def test_the_body_of_a_reduction_is_no_call() -> None:
    def fn(p: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.reduce(x @ p, 1.0, lambda a, b: a * b + a, (1,))

    program = trace(fn, W, X)
    assert [op.primitive for op in program.graph.flat] == ["dot_general", "reduce"]
    np.testing.assert_array_equal(program.run(W, (X,)).outputs[0], fn(W, X))


def test_constants_are_known_and_params_are_not() -> None:
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    program = trace(lambda p, x: (x @ p + table) * 2.0, W, X)
    add, mul = op_called(program, "add"), op_called(program, "mul")
    assert add.inputs[1].known
    np.testing.assert_array_equal(add.inputs[1].const, table)
    assert float(mul.inputs[1].const) == 2.0
    assert not any(value.known for value in program.graph.inputs)


def test_abstract_params_give_the_same_graph() -> None:
    network = build("resnet18_folded")
    concrete = trace(network.fn, network.params, *network.inputs)
    abstract = trace(*_shapes((network.fn, network.params, *network.inputs)))
    assert [op.primitive for op in abstract.graph.flat] == [
        op.primitive for op in concrete.graph.flat
    ]
    got = abstract.run(network.params, network.inputs).outputs
    assert [leaf.shape for leaf in got] == list(network.shapes)


def _shapes(args: Any) -> Any:
    return args[0], *jax.eval_shape(lambda *tree: tree, *args[1:])


def test_params_in_a_closure_are_an_error() -> None:
    params = {"Dense_0": {"kernel": W}}
    message = (
        "no output depends on any leaf of params: 1 leaves, the first is 'Dense_0/kernel'. "
        "What to do: use the params that fn receives; don't capture them from an outer scope."
    )
    with pytest.raises(TraceError) as error:
        trace(lambda _, x: x @ params["Dense_0"]["kernel"], params, X)
    assert str(error.value) == message


def test_a_param_that_is_an_output_is_enough() -> None:
    assert len(trace(lambda p, x: (p, x), W, X).graph.flat) == 0


def test_no_params_at_all_is_no_error() -> None:
    assert trace(lambda _, x: x + 1, {}, X).params == {}


def test_another_structure_is_an_error() -> None:
    program = trace(lambda p, x: x @ p["w"], {"w": W}, X)
    with pytest.raises(TraceError) as error:
        program.run({"v": W}, (X,))
    text = str(error.value)
    assert text.startswith("params or inputs have another structure than the traced ones: got")
    assert "'v'" in text.partition("What to do: pass")[0]
    assert "'w'" in text.partition("What to do: pass")[2]
    with pytest.raises(TraceError, match="another structure"):
        program.run({"w": W}, (X, X))
