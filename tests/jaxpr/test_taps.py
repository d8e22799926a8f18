"""What actions report and read inside scan, cond, remat and calls; what happens to derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.errors import TraceError
from flaxcle.jaxpr import trace
from jaxpr.probes import Add, Identity, Mean, op_called, ops_called

W = jnp.arange(1.0, 13.0).reshape(3, 2, 2) / 10
X = jnp.array([[1.0, -2.0]])


def layers(params: Any, x: jax.Array, **options: Any) -> jax.Array:
    """A stack of dense layers in a scan."""

    def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return x @ w, None

    return jax.lax.scan(body, x, params, **options)[0]


def nested(params: Any, x: jax.Array) -> jax.Array:
    """A scan of 3 layers, each applied in an inner scan of 4 turns."""

    def outer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        inner = lambda x, _: (jnp.tanh(x @ w), None)  # noqa: E731
        return jax.lax.scan(inner, x, None, length=4)[0], None

    return jax.lax.scan(outer, x, params)[0]


def by_hand(params: Any, x: jax.Array, add: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`nested` in NumPy with `add[i, j]` added to every product, and the products' means."""
    y, means = np.asarray(x), np.zeros((3, 4))
    for i in range(3):
        for j in range(4):
            product = y @ np.asarray(params[i])
            means[i, j] = product.mean()
            y = np.tanh(product + add[i, j])
    return y, means


def test_taps_in_a_scan_have_a_leading_axis() -> None:
    program = trace(layers, W, X)
    taps = program.run(W, (X,), {op_called(program, "dot_general"): Mean("y")}).taps
    steps = [X, X @ W[0], X @ W[0] @ W[1], X @ W[0] @ W[1] @ W[2]]
    np.testing.assert_allclose(taps["y"], [step.mean() for step in steps[1:]], rtol=1e-6)


@pytest.mark.parametrize("options", [{"reverse": True}, {"unroll": 2}, {"unroll": True}])
def test_scan_options_are_kept(options: dict[str, Any]) -> None:
    fn = lambda p, x: layers(p, x, **options)  # noqa: E731
    program = trace(fn, W, X)
    run = program.run(W, (X,), {op_called(program, "dot_general"): Mean("y")})
    np.testing.assert_allclose(run.outputs[0], fn(W, X), rtol=1e-6)
    last = 0 if options.get("reverse") else -1
    np.testing.assert_allclose(run.taps["y"][last], run.outputs[0].mean(), rtol=1e-6)


def test_taps_in_nested_scans_have_an_axis_for_each() -> None:
    program = trace(nested, W, X)
    result = program.run(W, (X,), {op_called(program, "dot_general"): Mean("y")})
    output, means = by_hand(W, X, np.zeros((3, 4)))
    np.testing.assert_allclose(result.outputs[0], output, rtol=1e-5)
    np.testing.assert_allclose(result.taps["y"], means, rtol=1e-5, atol=1e-6)


def test_feeds_are_sliced_per_iteration() -> None:
    program = trace(nested, W, X)
    add = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    run = program.run(W, (X,), {op_called(program, "dot_general"): Add("a")}, {"a": add})
    np.testing.assert_allclose(run.outputs[0], by_hand(W, X, add)[0], rtol=1e-5)


def test_feeds_reach_remat_and_are_differentiable() -> None:
    fn = lambda p, x: jax.checkpoint(layers)(p, x).sum()  # noqa: E731
    program = trace(fn, W, X)
    actions = {op_called(program, "dot_general"): Add("a")}
    run = lambda a: program.run(W, (X,), actions, {"a": a}).outputs[0]  # noqa: E731
    grads = jax.grad(run)(jnp.zeros(3))
    last = [w.sum() for w in (W[1] @ W[2], W[2], jnp.eye(2))]
    np.testing.assert_allclose(grads, last, rtol=1e-6)


def test_remat_is_kept_around_actions() -> None:
    fn = lambda p, x: jax.checkpoint(layers)(p, x)  # noqa: E731
    program = trace(fn, W, X)
    actions = {op_called(program, "dot_general"): Identity()}
    jaxpr = jax.make_jaxpr(lambda p: program.run(p, (X,), actions).outputs)(W)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["remat2"]


def branches(params: Any, x: jax.Array) -> jax.Array:
    """Three branches; the last has no layer."""
    table = (lambda x: x @ params["a"], lambda x: 2 * (x @ params["b"]), lambda x: x)
    return jax.lax.switch(jnp.int32(x[0, 0]), table, x)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_taps_of_branches_not_taken_are_nan(taken: int) -> None:
    params, x = {"a": W[0], "b": W[1]}, X.at[0, 0].set(taken)
    program = trace(branches, params, x)
    actions = {op: Mean(f"y{k}") for k, op in enumerate(ops_called(program, "dot_general"))}
    run = program.run(params, (x,), actions)
    np.testing.assert_array_equal(run.outputs[0], branches(params, x))
    assert [bool(jnp.isnan(run.taps[f"y{k}"])) for k in (0, 1)] == [taken != 0, taken != 1]
    if taken == 1:
        np.testing.assert_allclose(run.taps["y1"], (x @ params["b"]).mean(), rtol=1e-6)


def test_constant_results_of_branches_and_loops_keep_their_type() -> None:
    def fn(w: jax.Array, x: jax.Array) -> Any:
        chosen = jax.lax.cond(x[0, 0] > 0, lambda: (x @ w[0], 0.0), lambda: (x, x.sum()))
        return chosen, jax.lax.scan(lambda c, m: (jnp.float32(0.5), x @ m + c), 0.0, w), 7

    program = trace(fn, W, X)
    actions = {op: Identity() for op in ops_called(program, "dot_general")}
    assert len(actions) == 2
    for run in (program.run(W, (X,)), program.run(W, (X,), actions)):
        assert all(isinstance(out, jax.Array) for out in run.outputs)
        jax.tree.map(np.testing.assert_array_equal, program.unflatten(run.outputs), fn(W, X))


def test_an_action_in_a_while_loop_is_refused() -> None:
    def fn(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda y: y.sum() < 9, lambda y: y @ w + 1, x)

    program = trace(fn, W[0], X)
    (inner,) = (op for op in program.graph.flat[-1].bodies[1].flat if op.primitive == "dot_general")
    message = r"can't put an action inside 'while': test_taps.py:\d+ \(.*fn\)"
    with pytest.raises(TraceError, match=message):
        program.run(W[0], (X,), {inner: Identity()})


@jax.custom_jvp
def triple(x: jax.Array) -> jax.Array:
    """Hands its operand on, with three times its derivative."""
    return x


triple.defjvp(lambda primals, tangents: (primals[0], 3 * tangents[0]))


@jax.custom_vjp
def reverse(x: jax.Array) -> jax.Array:
    """A gradient reversal layer."""
    return x


reverse.defvjp(lambda x: (x, None), lambda _, g: (-g,))


@pytest.mark.parametrize(("call", "factor"), [(triple, 3), (reverse, -1)])
def test_custom_derivatives_are_kept_and_belong_to_the_result(call: Any, factor: int) -> None:
    def fn(w: jax.Array, x: jax.Array) -> jax.Array:
        y = x @ w
        return (y + call(y)).sum()

    program = trace(fn, W[0], X)
    actions = {op_called(program, "dot_general"): Identity()}
    want = jax.grad(lambda w: (1 + factor) * (X @ w).sum())(W[0])
    for chosen in ({}, actions):
        run = lambda w, c=chosen: program.run(w, (X,), c).outputs[0]  # noqa: E731
        np.testing.assert_array_equal(jax.grad(run)(W[0]), want)


def test_derivatives_go_through_a_call_that_holds_an_action() -> None:
    @jax.custom_jvp
    def dense(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w

    dense.defjvp(lambda p, t: (dense(*p), jnp.zeros((1, 2))))
    program = trace(dense, W[0], X)
    grad = lambda a: jax.grad(lambda w: program.run(w, (X,), a).outputs[0].sum())(W[0])  # noqa: E731
    np.testing.assert_array_equal(grad({}), 0)
    op = op_called(program, "dot_general")
    np.testing.assert_array_equal(grad({op: Identity()}), jnp.repeat(X.T, 2, axis=1))


def test_run_under_vmap() -> None:
    program = trace(layers, W, X)
    actions = {op_called(program, "dot_general"): Mean("y")}
    many = jnp.stack([X, 2 * X])
    outputs, taps = jax.vmap(lambda x: program.run(W, (x,), actions))(many)
    np.testing.assert_allclose(outputs[0], jax.vmap(lambda x: layers(W, x))(many), rtol=1e-6)
    assert taps["y"].shape == (2, 3)
