"""Laws of re-evaluation over the zoo: without actions, and with empty ones, nothing changes."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from flaxcle.jaxpr import Actions, Program, trace
from jaxpr.probes import CONTRACTIONS, Identity, every_op, ops_called
from zoo import Network, build, networks

# One of each: calls with custom derivatives, scan, remat, both, cond, a scan of recurrent cells.
STRUCTURED = (
    "squeeze_excite",
    "scan_stack",
    "remat_stack",
    "scan_remat_stack",
    "cond_branches",
    "lstm",
    "moe_top2",
)


@pytest.fixture(scope="module", params=list(networks()))
def network(request: pytest.FixtureRequest) -> Network:
    return build(request.param)


@pytest.fixture(scope="module")
def program(network: Network) -> Program:
    return trace(network.fn, network.params, *network.inputs)


def test_without_actions_records_the_same_operations(network: Network, program: Program) -> None:
    def run(params: Any, *inputs: Any) -> Any:
        return program.unflatten(program.run(params, inputs).outputs)

    args = (network.params, *network.inputs)
    assert _text(jax.make_jaxpr(run)(*args)) == _text(jax.make_jaxpr(network.fn)(*args))


def test_with_identity_on_every_contraction_is_bit_equal(
    network: Network, program: Program
) -> None:
    actions = {op: Identity() for op in ops_called(program, *CONTRACTIONS)}
    assert actions
    assert_same(program, network, actions)


@pytest.mark.parametrize("name", STRUCTURED)
def test_with_identity_on_every_op_is_bit_equal(name: str) -> None:
    network = build(name)
    program = trace(network.fn, network.params, *network.inputs)
    assert_same(program, network, {op: Identity() for op in every_op(program.graph)})


def assert_same(program: Program, network: Network, actions: Actions) -> None:
    """One compilation for both; what is the same operation is computed once."""

    @jax.jit
    def both(params: Any, inputs: Any) -> Any:
        result = program.run(params, inputs, actions)
        return program.unflatten(result.outputs), network.fn(params, *inputs)

    got, want = both(network.params, network.inputs)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        np.testing.assert_array_equal(one, two)


def _text(jaxpr: Any) -> str:
    """A jaxpr without the addresses of the Python functions in it."""
    return re.sub(r" at 0x\w+", "", str(jaxpr))


@pytest.mark.parametrize("name", ["squeeze_excite", "scan_stack", "cond_branches", "while_loop"])
def test_eager_equals_eager(name: str) -> None:
    network = build(name)
    program = trace(network.fn, network.params, *network.inputs)
    outputs = program.run(network.params, network.inputs).outputs
    want = jax.tree.leaves(network.fn(network.params, *network.inputs))
    for one, two in zip(outputs, want, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * np.abs(two).max())


@pytest.mark.parametrize("name", STRUCTURED)
def test_gradients_equal_the_functions(name: str) -> None:
    network = build(name)
    program = trace(network.fn, network.params, *network.inputs)
    actions = {op: Identity() for op in ops_called(program, *CONTRACTIONS)}

    def loss(evaluate: Any, params: Any) -> jax.Array:
        return sum((leaf**2).mean() for leaf in jax.tree.leaves(evaluate(params)))

    @jax.jit
    def gradients(params: Any) -> Any:
        return [
            jax.grad(partial(loss, evaluate))(params)
            for evaluate in (
                lambda p: network.fn(p, *network.inputs),
                lambda p: program.run(p, network.inputs).outputs,
                lambda p: program.run(p, network.inputs, actions).outputs,
            )
        ]

    want, *others = map(jax.tree.leaves, gradients(network.params))
    for got in others:
        for one, two in zip(got, want, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5 * (1e-3 + np.abs(two).max()))
