"""What becomes of a constant along its route: how much each of the next biases has to take up.

    relu(x) = relu(x - c) + c,     W (y + c) + b = W y + (W c + b)

The constant is sent through the ops themselves, so kernels of any layout, strides, groups, pools
and gains between them count as they are. The invariant: what is not one number per channel where a
bias takes it up (zero padding does that) is reported, never averaged away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.bias.adds import BiasAdd
from flaxcle.bias.routes import Route
from flaxcle.jaxpr import Op, trace
from flaxcle.paths import PyTree

Adds = Mapping[Op, BiasAdd]
_BAR = "\n"


class Arrival(NamedTuple):
    """What arrives at a bias: per channel the amount (at most positions), and what is not constant.

    `spread` is what differs along the other axes, `bent` what differs under a maximum on the way.
    """

    leaf: str
    amount: np.ndarray
    spread: float
    bent: float


def send(
    fn: Callable[..., Any],
    params: PyTree,
    inputs: Sequence[Any],
    find: Callable[[Any], tuple[Sequence[Route], Adds]],
    constants: Mapping[str, np.ndarray],
) -> dict[str, list[Arrival]]:
    """Sends the constants, named after their bias adds, along the routes that `find` returns."""

    @jax.jit
    def run(params: PyTree, inputs: Any, constants: Mapping[str, jax.Array]) -> dict[str, Any]:
        program = trace(fn, params, *inputs)
        routes, adds = find(program)
        return program.run(params, inputs, _actions(routes, adds, constants)).taps

    taps = run(params, tuple(inputs), {k: jnp.asarray(c) for k, c in constants.items()})
    arrivals: dict[str, list[Arrival]] = {name: [] for name in constants}
    for key, (amount, low, high, bent) in taps.items():
        name, leaf, _ = key.split(_BAR)
        differences = np.asarray(high, np.float64) - np.asarray(low, np.float64)
        arrival = Arrival(
            leaf, np.asarray(amount, np.float64), differences.max(initial=0), float(bent)
        )
        arrivals[name].append(arrival)
    return arrivals


def _actions(
    routes: Sequence[Route], adds: Adds, constants: Mapping[str, jax.Array]
) -> dict[Op, _Carry]:
    actions: dict[Op, _Carry] = {}
    for route in routes:
        trip = _Trip(route, adds, constants)
        for op in (route.start, *route.moves, *route.ends):
            actions.setdefault(op, _Carry()).trips.append(trip)
    return actions


class _Carry:
    """Action: run the op as it is, and move every constant that passes it."""

    feeds = ()

    def __init__(self) -> None:
        self.trips: list[_Trip] = []

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        outputs, taps = op.bind(*operands), {}
        for trip in self.trips:
            taps.update(trip.at(op, operands))
        return outputs, taps


class _Trip:
    """One constant on its way, as an array of the shape of each value that it passes."""

    def __init__(self, route: Route, adds: Adds, constants: Mapping[str, jax.Array]) -> None:
        self.route, self.adds = route, adds
        self.add = adds[route.start]
        self.constant = constants[self.add.name]
        self.carried: dict[int, jax.Array] = {}
        self.bent = jnp.zeros((), jnp.float32)

    def at(self, op: Op, operands: list[Any]) -> dict[str, Any]:
        if op is self.route.start:
            out = op.outputs[0]
            spread = self.add.spread(self.constant, out.shape).astype(out.dtype)
            self.carried[id(out)] = jnp.broadcast_to(spread, out.shape)
        elif op in self.route.ends:
            return self._arrive(op)
        else:
            moved = self._move(op, operands)
            self.carried.update({id(v): m for v, m in zip(op.outputs, moved, strict=True)})
        return {}

    def _arrive(self, op: Op) -> dict[str, Any]:
        (passed,) = (self.carried[id(v)] for v in op.inputs if id(v) in self.carried)
        add = self.adds[op]
        statistics = (add.per_channel(f, passed) for f in (jnp.median, jnp.min, jnp.max))
        key = _BAR.join((self.add.name, add.leaf, add.name))
        return {key: (*statistics, self.bent)}

    def _move(self, op: Op, operands: list[Any]) -> list[jax.Array]:
        passed = [self.carried.get(id(value)) for value in op.inputs]
        first = next(k for k, c in enumerate(passed) if c is not None)
        if op.primitive in ("max", "min", "clamp", "add", "add_any", "sub"):
            constant = passed[first]
            assert constant is not None
            return [-constant if op.primitive == "sub" and first == 1 else constant]
        if op.primitive == "select_n":
            return [self.carried[id(op.inputs[self.route.taken[op]])]]
        if op.primitive in ("concatenate", "pad"):
            pairs = zip(passed, operands, strict=True)
            return op.bind(*(jnp.zeros_like(x) if c is None else c for c, x in pairs))
        new = [x if c is None else c for c, x in zip(passed, operands, strict=True)]
        if op.primitive in ("reduce_max", "reduce_window_max"):
            self._check_flat(op, new)
        return op.bind(*new)

    def _check_flat(self, op: Op, operands: list[jax.Array]) -> None:
        """A maximum over unequal constants moves none of them."""
        (x,) = operands
        (high,), (low,) = op.bind(x), op.bind(-x)
        bent = jnp.max(jnp.abs(high + low), initial=0.0).astype(jnp.float32)
        self.bent = jnp.maximum(self.bent, bent)
