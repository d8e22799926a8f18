"""The fixpoint of all balances.

One colour after the other moves to the balance of its ranges, `x = clip(coefficients @ ranges)`.
With the entries fixed at which the maxima stand this is a sparse linear system. So it is solved
on a few entries of each row (`relax`), then the weights are searched for larger entries, and so on
until no scale would move (`converge`). A handful of searches is enough even where plain sweeps
over the weights need hundreds, for each finds the coupling that the last solution had missed.

The balance is non-expansive in the largest norm and bounded by a box, so sweeps can't diverge;
their acceleration may overshoot, and is dropped when the residual grows. The invariant: of all
points at which the residual was measured, the best is returned.

Sources: Nagel et al. 2019, eq. 11 (the balance); Anderson 1965 (the acceleration, here with one
direction); Kelley 1960 (cutting planes).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxcle.ranges import filled_after, replicated
from flaxcle.solve.entries import Cores, Entries
from flaxcle.solve.guards import Balance
from flaxcle.solve.layout import Layout
from flaxcle.solve.search import SLOTS, Reading, no_entries, read, remember

SWEEPS_PER_SEARCH = 50


class Solution(NamedTuple):
    """log2 scales, the largest change that a further sweep would make, and the searches done."""

    x: jax.Array
    residual: jax.Array
    sweeps: jax.Array


@dataclass(frozen=True, eq=False)
class Problem:
    """The numbers of all balances.

    Attributes:
        layout: the order of rows and channels.
        cores: the weights, reduced.
        known: for each colour the entries of its rows that are not searched.
        balance: coefficients and bounds.
    """

    layout: Layout
    cores: Cores
    known: tuple[list[Entries], ...]
    balance: Balance

    def target(self, number: int, exponents: jax.Array, searched: jax.Array) -> jax.Array:
        """Where the channels of a colour balance, given the ranges of its searched rows."""
        colour = self.layout.colours[number]
        rows = [entries.ranges(exponents) for entries in self.known[number]]
        rows = jnp.concatenate([*rows, searched])[colour.order]
        weights = self.balance.coefficients[colour.rows]
        rows = colour.joined(rows, weights != 0)
        weighted = jnp.where(jnp.isfinite(rows), weights * rows, 0.0)
        balance = colour.to_channels(weighted, jnp.add)
        here = slice(colour.start, colour.stop)
        return jnp.clip(balance, self.balance.low[here], self.balance.high[here])

    def sweep(self, x: jax.Array, entries: Entries) -> jax.Array:
        """Balances one colour after the other on the remembered entries."""
        for number, colour in enumerate(self.layout.colours):
            exponents = self.layout.exponents(x)
            ranges = entries.rows(colour.searched).ranges(exponents)
            target = self.target(number, exponents, ranges)
            x = lax.dynamic_update_slice(x, target, (colour.start,))
        return replicated(x)

    def balanced(self, x: jax.Array, reading: Reading) -> jax.Array:
        """Where every group would balance if no other moved from `x`."""
        exponents = self.layout.exponents(x)
        targets = [
            self.target(number, exponents, reading.range[colour.searched])
            for number, colour in enumerate(self.layout.colours)
        ]
        return jnp.concatenate(targets)

    def residual(self, x: jax.Array, reading: Reading) -> jax.Array:
        """The largest change that balancing every group at `x` would make."""
        return jnp.max(jnp.abs(self.balanced(x, reading) - x))


class State(NamedTuple):
    """Where the search stands, and the best point so far."""

    x: jax.Array
    reading: Reading
    entries: Entries
    best: Solution


def converge(problem: Problem, start: Reading, tol: jax.Array, max_sweeps: jax.Array) -> Solution:
    """Scales at which no balance would change a log2 scale by more than `tol`.

    Args:
        problem: the balances.
        start: the ranges of the searched rows at scale 1.
        tol: of log2 scales.
        max_sweeps: limit of the readings, `start` included.
    """
    layout, cores = problem.layout, problem.cores
    zero = jnp.zeros_like(problem.balance.low)
    target, one = problem.balanced(zero, start), jnp.asarray(1, jnp.int32)
    if not layout.depth:  # no scale moves the range of another group
        return Solution(target, jnp.zeros_like(tol), one)

    def unfinished(best: Solution) -> jax.Array:
        return (best.residual > tol) & (best.sweeps < max_sweeps)

    def visit(x: jax.Array, best: Solution) -> tuple[Reading, Solution]:
        reading = read(layout, cores, layout.exponents(x))
        residual = problem.residual(x, reading)
        better = residual < best.residual
        point = jnp.where(better, x, best.x)
        lowest = jnp.where(better, residual, best.residual)
        return reading, Solution(point, lowest, best.sweeps + 1)

    def advance(state: State) -> State:
        best, entries = state.best, state.entries
        if layout.searched:
            slot = best.sweeps % SLOTS
            exponents = layout.exponents(state.x)
            entries = remember(entries, layout, cores, exponents, state.reading, slot)
        x = relax(problem, entries, state.x, jnp.maximum(best.residual * 0.02, tol / 4))
        reading, best = visit(x, best)
        return State(x, reading, entries, best)

    x, reading, best = zero, start, Solution(zero, jnp.max(jnp.abs(target)), one)
    if layout.searched:  # what is largest at scale 1 is hardly so near the balance
        moving = unfinished(best)
        x = jnp.where(moving, target, zero)
        reading, best = visit(x, best)
        best = best._replace(sweeps=jnp.where(moving, best.sweeps, one))
    state = State(x, reading, no_entries(layout, best.residual), best)
    return lax.while_loop(lambda state: unfinished(state.best), advance, state).best


class Trail(NamedTuple):
    """A point and its step, and what the points before taught.

    Attributes:
        x: the point.
        step: how far a sweep would move it.
        change: the last change of the step.
        reach: how much further a full step led for it.
        weight: inverse of the change's squared length; 0 when it is to be forgotten.
        sweeps: number of sweeps.
    """

    x: jax.Array
    step: jax.Array
    change: jax.Array
    reach: jax.Array
    weight: jax.Array
    sweeps: jax.Array


def relax(problem: Problem, entries: Entries, x: jax.Array, tol: jax.Array) -> jax.Array:
    """The fixpoint on the remembered entries, by accelerated sweeps."""

    def unfinished(trail: Trail) -> jax.Array:
        moving = jnp.max(jnp.abs(trail.step)) > tol
        return (trail.sweeps == 0) | moving & (trail.sweeps < SWEEPS_PER_SEARCH)

    def advance(trail: Trail) -> Trail:
        explained = trail.weight * _dot(trail.change, trail.step)
        back = jnp.where(trail.step == 0, 0.0, explained * trail.reach)  # not off a bound
        x = trail.x + trail.step - back
        x = replicated(jnp.clip(x, problem.balance.low, problem.balance.high))
        return extended(trail, x, problem.sweep(x, entries) - x)

    after = entries.value[0, 0] if problem.layout.searched else tol
    none = filled_after(after, x.shape, 0, x.dtype)
    start = Trail(x, none, none, none, _dot(none, none), jnp.zeros((), jnp.int32))
    last = lax.while_loop(unfinished, advance, start)
    return last.x + last.step


def extended(trail: Trail, x: jax.Array, step: jax.Array) -> Trail:
    """The trail with one more point; what it taught is forgotten when the step has grown.

    A change is taken orthogonal to the one before it, which works as well as two to eight changes
    that are all kept: before these would help, the maxima stand elsewhere.
    """
    change = step - trail.step
    known = trail.weight * _dot(trail.change, change)
    reach = change + x - trail.x - known * trail.reach
    new = change - known * trail.change
    length = _dot(new, new)
    grown = _dot(step, step) > 4 * _dot(trail.step, trail.step)
    useful = (length > 1e-8 * _dot(change, change)) & ~grown
    weight = jnp.where(useful, 1 / jnp.where(useful, length, 1.0), 0.0)
    return Trail(x, step, new, reach, weight, trail.sweeps + 1)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
