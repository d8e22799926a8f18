"""How much the output moves with each weight and each activation: one backward pass per batch.

    gain[p] = sum over outputs and data of (d output / d value[p])**2

With random signs r, `E[(d (r . output) / d value)**2]` is that sum (Hutchinson), so that one
gradient of a random projection estimates all gains at once. A weight's error is the same at every
position, so its mean effect on a channel is what bias correction removes: where there is a bias,
its gain is measured against inputs that are centred per feature. Zeros make no noise: they lie on
every grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxcle.cache import compiled
from flaxcle.jaxpr import Op, computed, trace
from flaxcle.learn.sources import Sources, find_sources
from flaxcle.paths import PyTree, float_leaves, named_leaves, replace_leaves
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.plan import Quantizer
from flaxcle.ranges import rest_of
from flaxcle.spec import Spec

Arrays = dict[str, Any]


class Sensitivity(NamedTuple):
    """Of every source, by name: gain, smallest and largest value, as arrays of its shape.

    `energy` is the sum of the squared outputs: noise divided by it is the inverse of the SQNR.
    """

    gain: Arrays
    low: Arrays
    high: Arrays
    energy: jax.Array


def measure(
    fn: Callable[..., Any],
    params: PyTree,
    spec: Spec,
    batches: Iterable[tuple[Any, ...]],
    config: QuantConfig,
) -> Sensitivity:
    """The sensitivity over all batches; signs are drawn from a fixed seed."""
    probe = compiled(_probe, fn, spec, config)
    total: Sensitivity | None = None
    for number, inputs in enumerate(batches):
        new = probe(params, inputs, jax.random.key(number))
        total = new if total is None else _joined(total, new)
    assert total is not None
    return total


@jax.jit
def _joined(one: Sensitivity, two: Sensitivity) -> Sensitivity:
    return Sensitivity(
        {k: one.gain[k] + two.gain[k] for k in one.gain},
        {k: jnp.fmin(one.low[k], two.low[k]) for k in one.low},
        {k: jnp.fmax(one.high[k], two.high[k]) for k in one.high},
        one.energy + two.energy,
    )


def _probe(
    fn: Callable[..., Any],
    spec: Spec,
    config: QuantConfig,
    params: PyTree,
    inputs: tuple[Any, ...],
    key: jax.Array,
) -> Sensitivity:
    program = trace(fn, params, *inputs)
    sources = find_sources(program, spec, config)
    actions = {op: _Probe(op, operands, sources) for op, operands in sources.places.items()}
    leaves = named_leaves(params)
    weights = {path: leaves[path] for path in sources.weights}
    slots = {name: jnp.zeros(s.shape, jnp.float32) for name, s in sources.activations.items()}

    def projection(weights: Arrays, slots: Arrays) -> Any:
        changed = replace_leaves(params, weights)
        outputs, taps = program.run(changed, inputs, actions, slots)
        wide = float_leaves(outputs)
        keys = jax.random.split(key, max(len(wide), 1))
        pairs = zip(keys, wide, strict=False)
        signed = [jnp.sum(out * jax.random.rademacher(k, out.shape, out.dtype)) for k, out in pairs]
        energy = sum(jnp.sum(jnp.square(out)) for out in wide)
        return sum(signed), (taps, energy)

    pulls, (taps, energy) = jax.grad(projection, argnums=(0, 1), has_aux=True)(weights, slots)
    pull_weights, gains = pulls
    return _reduced(sources, weights, pull_weights, gains, taps, energy)


def _reduced(
    sources: Sources, weights: Arrays, pulls: Arrays, gains: Arrays, taps: Arrays, energy: Any
) -> Sensitivity:
    gain, low, high = {}, {}, {}
    for path, source in sources.weights.items():
        leaf, pull = weights[path], pulls[path].astype(jnp.float32)
        rest = rest_of(leaf.ndim, source.axes)
        gain[source.name] = jnp.sum(jnp.square(pull), rest)
        low[source.name] = jnp.min(leaf, rest).astype(jnp.float32)
        high[source.name] = jnp.max(leaf, rest).astype(jnp.float32)
    for name in sources.activations:
        gain[name] = jnp.nan_to_num(gains[name])
        low[name], high[name] = taps[f"{name}:low"], taps[f"{name}:high"]
    return Sensitivity(gain, low, high, jnp.asarray(energy, jnp.float32))


class _Probe:
    """Action: run the op so that gradients tell the gains, and report the activations' ranges."""

    def __init__(self, op: Op, operands: Mapping[int, Quantizer], sources: Sources) -> None:
        live = {k: q.name for k, q in operands.items() if not q.weight}
        self.read = {k: sources.activations[n] for k, n in live.items() if n in sources.activations}
        self.feeds = tuple(dict.fromkeys(source.name for source in self.read.values()))
        weights = [k for k, q in operands.items() if q.weight]
        self.weight = weights[0] if op in sources.corrected and len(weights) == 1 else None

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        taps: Arrays = {}
        watched = list(operands)
        for k, source in self.read.items():
            x = jnp.asarray(operands[k])
            rest = rest_of(x.ndim, source.axes)
            watched[k] = _watched(rest, x, feed[source.name])
            wide = jax.lax.stop_gradient(x).astype(jnp.float32)
            taps[f"{source.name}:low"] = jnp.min(wide, rest)
            taps[f"{source.name}:high"] = jnp.max(wide, rest)
        if self.weight is None:
            return computed(op, *watched), taps
        x, w = watched[1 - self.weight], watched[self.weight]
        return [_centred(op, self.weight, x, w)], taps


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _watched(rest: tuple[int, ...], x: jax.Array, slot: jax.Array) -> jax.Array:
    """The identity in x, whose 'gradient' in the slot is the gain of x."""
    del rest, slot
    return x


def _watched_forward(rest: tuple[int, ...], x: jax.Array, slot: jax.Array) -> Any:
    del slot
    return x, x != 0


def _watched_backward(rest: tuple[int, ...], noisy: jax.Array, pull: jax.Array) -> Any:
    wide = jnp.where(noisy, pull, 0).astype(jnp.float32)
    return pull, jnp.sum(jnp.square(wide), rest)


_watched.defvjp(_watched_forward, _watched_backward)


def _centred(op: Op, weight: int, x: jax.Array, w: jax.Array) -> jax.Array:
    """A contraction whose gradient in the weight is that of inputs with mean zero."""

    def bound(x: jax.Array, w: jax.Array) -> jax.Array:
        return computed(op, *((x, w) if weight else (w, x)))[0]

    @jax.custom_vjp
    def run(x: jax.Array, w: jax.Array) -> jax.Array:
        return bound(x, w)

    def backward(operands: tuple[jax.Array, jax.Array], pull: jax.Array) -> Any:
        x, w = operands
        mean = jnp.mean(x, _positions(op, 1 - weight), keepdims=True)
        _, pull_x = jax.vjp(lambda x: bound(x, w), x)
        _, pull_w = jax.vjp(lambda w: bound(x - mean, w), w)
        return (*pull_x(pull), *pull_w(pull))

    run.defvjp(lambda x, w: (bound(x, w), (x, w)), backward)
    return run(x, w)


def _positions(op: Op, operand: int) -> tuple[int, ...]:
    """The axes of a contraction's data that are no features."""
    numbers: Any = op.params["dimension_numbers"]
    rank = len(op.inputs[operand].shape)
    if op.primitive == "conv_general_dilated":
        features = {(numbers.lhs_spec, numbers.rhs_spec)[operand][1]}
    else:
        features = {*numbers[0][operand], *numbers[1][operand]}
    return rest_of(rank, features)
