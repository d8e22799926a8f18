"""Training that goes on after equalization, against the theory.

Let s be the factors of the params, powers of two. With learning rates that carry the right power
of s for each entry, the equalized network runs through s times the params of the unequalized one,
to the bit. With the learning rates that it had, its first step is a known one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from small_net import PARAMS, SCALES, SPEC, assert_same, drawn, loss, scaled

import flaxcle as fc

STEPS = 4
BATCHES = drawn("batches", dict.fromkeys(range(2 * STEPS), (6, 5)))
RATES = jax.tree.map(lambda leaf: jnp.full_like(leaf, -0.1), PARAMS)
EPS = 1e-30
# XLA's rsqrt is not correctly rounded, so that x / s**2 does not give exactly s times as much.
WITH_RSQRT = {"rmsprop", "centered rmsprop", "adagrad", "adadelta"}


def by_entry(rates: Any) -> optax.GradientTransformation:
    """A learning rate for each entry."""
    return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, rates))


class Case(NamedTuple):
    """An optimizer of given learning rates, and their power of s that keeps its trajectory."""

    make: Callable[[Any], Any]
    power: int


def chained(*transforms: Any) -> Callable[[Any], Any]:
    return lambda rates: optax.chain(*transforms, by_entry(rates))


CASES = {
    "sgd": Case(chained(), 2),
    "momentum": Case(chained(optax.trace(0.9)), 2),
    "nesterov": Case(chained(optax.trace(0.9, nesterov=True)), 2),
    "ema": Case(chained(optax.ema(0.9)), 2),
    "MultiSteps": Case(lambda rates: optax.MultiSteps(chained(optax.trace(0.9))(rates), 3), 2),
    "schedule_free": Case(lambda rates: contrib.schedule_free(by_entry(rates), 1.0), 2),
    "lookahead": Case(lambda rates: optax.lookahead(chained(optax.trace(0.9))(rates), 3, 0.5), 2),
    "adam": Case(chained(optax.scale_by_adam(eps=EPS)), 1),
    "rmsprop": Case(chained(optax.scale_by_rms(eps=EPS), optax.trace(0.9)), 1),
    "lion": Case(chained(optax.scale_by_lion()), 1),
    "adadelta": Case(chained(optax.scale_by_adadelta(eps=EPS)), 0),
}


@partial(jax.jit, static_argnames="make")
def step(make: Any, params: Any, state: Any, rates: Any, x: jax.Array) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion("standard"):  # which optax relies on
        trained = getattr(params, "fast", params)
        updates, state = make(rates).update(jax.grad(loss)(trained, x), state, params)
        return optax.apply_updates(params, updates), state


def train(make: Any, params: Any, state: Any, rates: Any, first: int) -> tuple[Any, Any]:
    for number in range(first, first + STEPS):
        params, state = step(make, params, state, rates, BATCHES[number])
    return params, state


def start(name: str) -> tuple[Any, Any]:
    """Params and an optimizer state in the middle of training."""
    make = CASES[name].make
    params = optax.LookaheadParams.init_synced(PARAMS) if name == "lookahead" else PARAMS
    state = make(RATES).init(params)
    if name == "adadelta":  # Its first steps are as small as its eps.
        state = jax.tree.map(lambda leaf: leaf + 1.0, state)
    return train(make, params, state, RATES, 0)


def mapped(params: Any) -> Any:
    if isinstance(params, optax.LookaheadParams):
        return optax.LookaheadParams(*map(scaled, params))
    return scaled(params)


@pytest.mark.parametrize("name", CASES)
def test_equalized_training_is_the_unequalized_one_mapped(name: str) -> None:
    make, power = CASES[name]
    params, state = start(name)
    plain, plain_state = train(make, params, state, RATES, STEPS)
    state = fc.rescale_opt_state(state, params, SCALES, SPEC, strict=True)
    equalized = train(make, mapped(params), state, scaled(RATES, power), STEPS)
    rtol = 1e-5 if name in WITH_RSQRT else 0.0
    assert_same(equalized[0], mapped(plain), rtol)
    assert_same(equalized[1], fc.rescale_opt_state(plain_state, plain, SCALES, SPEC), rtol)


def test_momentum_after_equalize_train_state_is_as_in_theory() -> None:
    params, state = start("momentum")
    scales = fc.solve(params, SPEC, power_of_two=True)
    make = CASES["momentum"].make
    plain, _ = train(make, params, state, RATES, STEPS)
    new = fc.equalize_train_state((params, state), SPEC, power_of_two=True)
    assert float(jnp.abs(scales.log2["a -> b"]).max()) > 0
    rates = fc.apply_scales(fc.apply_scales(RATES, scales, SPEC), scales, SPEC)
    equalized, _ = train(make, *new, rates, STEPS)
    assert_same(equalized, fc.apply_scales(plain, scales, SPEC))


def test_stale_momentum_would_leave_the_path() -> None:
    """The check on the checks: without rescaling the state, the trajectories part."""
    params, state = start("momentum")
    plain, _ = train(CASES["momentum"].make, params, state, RATES, STEPS)
    stale, _ = train(CASES["momentum"].make, mapped(params), state, scaled(RATES, 2), STEPS)
    assert float(jnp.abs(stale["a"]["kernel"] / mapped(plain)["a"]["kernel"] - 1).max()) > 0.1


NORMALIZED = {
    "adam": optax.scale_by_adam(eps=0.0),
    "nadam": optax.scale_by_adam(eps=0.0, nesterov=True),
    "amsgrad": optax.scale_by_amsgrad(eps=0.0),
    "lion": optax.scale_by_lion(),
    "rmsprop": optax.scale_by_rms(eps=0.0),
    "centered rmsprop": optax.scale_by_stddev(eps=0.0),
    "adagrad": optax.scale_by_rss(eps=0.0),
    "adafactor, unfactored": optax.scale_by_factored_rms(factored=False, epsilon=0.0),
}


def one_step(tx: Any, steps: int = 2) -> tuple[Any, Any]:
    """The next update of an optimizer: of the old network, and of the equalized one."""
    grads = [drawn(f"gradients {number}") for number in range(steps + 1)]

    @jax.jit
    def run(grads: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            state = tx.init(PARAMS)
            for each in grads[:-1]:
                _, state = tx.update(each, state, PARAMS)
            new = fc.rescale_opt_state(state, PARAMS, SCALES, SPEC)
            old_update, _ = tx.update(grads[-1], state, PARAMS)
            new_update, _ = tx.update(scaled(grads[-1], -1), new, scaled(PARAMS))
        return state, old_update, new_update

    return run(grads), grads


@pytest.mark.parametrize("name", NORMALIZED)
def test_first_update_of_a_normalizing_optimizer_is_unchanged(name: str) -> None:
    (_, old, new), _ = one_step(NORMALIZED[name])
    assert_same(new, old, 3e-7 if name in WITH_RSQRT else 0.0)


def test_first_update_of_adam_has_eps_times_s() -> None:
    b1, b2, eps, root = 0.9, 0.75, 0.05, 0.02
    adam = optax.scale_by_adam(b1, b2, eps=eps, eps_root=root)
    (state, _, new), grads = one_step(adam)
    count = 1.0 + float(state.count)

    def expected(mu: Any, nu: Any, grad: Any, s: Any) -> Any:
        mean = (b1 * mu + (1 - b1) * grad) / (1 - b1**count)
        square = (b2 * nu + (1 - b2) * grad**2) / (1 - b2**count)
        return mean / (np.sqrt(square + root * s**2) + eps * s)

    factors = scaled(jax.tree.map(jnp.ones_like, PARAMS))
    theory = jax.tree.map(expected, state.mu, state.nu, grads[-1], factors)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), new, theory)
