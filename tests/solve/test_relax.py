"""Accelerated sweeps, on linear balances whose fixpoint is known."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle.solve.fixpoint import SWEEPS_PER_SEARCH, Trail, extended, relax

RATES = np.array([0.97, 0.9, 0.6, 0.2, -0.5], np.float32)
FIXED = np.array([3.0, -1.0, 2.0, 0.5, -4.0], np.float32)


@dataclass
class Linear:
    """Sweeps that shrink the distance to `FIXED` by `RATES`, in the box of `bound`."""

    bound: float = 100.0

    def __post_init__(self) -> None:
        bound = jnp.full(RATES.shape, self.bound, jnp.float32)
        self.balance = SimpleNamespace(low=-bound, high=bound)
        self.layout = SimpleNamespace(searched=())
        self.sweeps = 0

    def count(self) -> None:
        self.sweeps += 1

    def sweep(self, x: jax.Array, entries: Any) -> jax.Array:
        jax.debug.callback(self.count)
        return jnp.clip(FIXED + RATES * (x - FIXED), self.balance.low, self.balance.high)


def solved(problem: Any, tol: float) -> tuple[jax.Array, int]:
    """The point that is found, and the number of sweeps behind it."""
    x = relax(problem, None, jnp.zeros(RATES.shape), jnp.float32(tol))  # pyright: ignore
    jax.effects_barrier()
    return x, problem.sweeps


def test_a_slow_system_takes_few_sweeps():
    plain, x = 0, np.zeros_like(FIXED)
    while np.abs(step := (RATES - 1) * (x - FIXED)).max() > 1e-4:
        plain, x = plain + 1, x + step
    x, sweeps = solved(Linear(), 1e-4)
    np.testing.assert_allclose(x, FIXED, atol=1e-4 / (1 - RATES.max()))
    assert 5 * sweeps <= plain


def test_the_point_stays_within_its_bounds():
    x, sweeps = solved(Linear(bound=2.0), 1e-5)
    np.testing.assert_allclose(x, np.clip(FIXED, -2, 2), atol=1e-5 / (1 - RATES.max()))
    assert sweeps <= 20  # without care at the bounds it went on in a circle


def test_sweeps_are_limited():
    _, sweeps = solved(Linear(), -1.0)
    assert sweeps == SWEEPS_PER_SEARCH


def test_a_change_is_orthogonal_to_the_one_before():
    rng = np.random.default_rng(0)
    x, step, change, reach, new_x = jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)
    trail = Trail(x, step, change, reach, 1 / jnp.dot(change, change), jnp.int32(3))
    after = extended(trail, new_x, 0.5 * step)
    assert float(jnp.dot(after.change, change)) == pytest.approx(0, abs=1e-5)
    assert float(after.weight * jnp.dot(after.change, after.change)) == pytest.approx(1)
    assert after.sweeps == 4


@pytest.mark.parametrize("factor", [2.1, 1.0])
def test_a_trail_is_forgotten_when_steps_grow_or_do_not_change(factor):
    ones = jnp.ones(4)
    trail = Trail(ones, ones, 0 * ones, 0 * ones, jnp.float32(0), jnp.int32(1))
    assert extended(trail, 2 * ones, factor * ones).weight == 0
    assert extended(trail, 2 * ones, 0.9 * ones).weight > 0
