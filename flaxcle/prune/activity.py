"""How large the channels are in front of each weight: measured on noise, or bounded.

A channel that noise does not move may move on real data. What it can be then is a constant, left
behind by biases, plus a gain times what its producers make. Both are measured on the function
itself, so each norm, activation, clip and pool counts as it stands. The invariant: what can't be
read is infinite, and its channel counts as live.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.jaxpr import Op, Program
from flaxcle.paths import PyTree, is_float, map_named
from flaxcle.prune.readers import Reader
from flaxcle.ranges import rest_of

SEEDS = (0, 1)


class Activity(NamedTuple):
    """Of each input channel of a reader, (sliced axes ..., channels) flat.

    Attributes:
        noise: the largest magnitude on random inputs.
        moves: whether it differs between random inputs.
        constant: the largest magnitude with all kernels at zero.
        gain: the largest magnitude for small producers' results of magnitude one, without biases.
    """

    noise: np.ndarray
    moves: np.ndarray
    constant: np.ndarray
    gain: np.ndarray


def measure(
    program: Program,
    params: PyTree,
    inputs: Sequence[Any],
    readers: Mapping[str, Sequence[Reader]],
    shifts: Collection[str],
) -> dict[Op, Activity]:
    """Runs the program on random inputs of the traced shapes; integers are zero."""
    every = [reader for own in readers.values() for reader in own]

    @jax.jit
    def run(tree: PyTree, args: Any) -> Any:
        return program.run(tree, args, {reader.op: _Tap(reader) for reader in every}).taps

    @jax.jit
    def pushed(tree: PyTree, args: Any, sign: Any) -> Any:
        return program.run(tree, args, {reader.op: _Push(reader, sign) for reader in every}).taps

    probes = [probe(inputs, seed) for seed in SEEDS]
    still = _zeroed(params, readers)
    without_biases = _zeroed(still, shifts)
    runs = [run(tree, probe) for tree in (params, still) for probe in probes]
    runs += [pushed(without_biases, probes[0], sign) for sign in (1, -1)]
    return {reader.op: _activity(*(_host(reader, taps) for taps in runs)) for reader in every}


def _zeroed(params: PyTree, paths: Collection[str]) -> PyTree:
    return map_named(lambda p, leaf: jnp.zeros_like(leaf) if p in paths else leaf, params)


class _Tap:
    """Action: the largest magnitude of each input channel."""

    feeds = ()

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        return op.bind(*operands), {self.reader.name: self.tap(operands)}

    def tap(self, operands: list[Any]) -> jax.Array:
        x, axes = jnp.abs(operands[self.reader.operand]), self.reader.axes
        kept = jnp.max(x, axis=rest_of(x.ndim, axes))
        return kept.transpose(np.argsort(np.argsort(axes))).ravel().astype(jnp.float32)


class _Push(_Tap):
    """Action: the same in units of a tiny constant, which takes the place of each result."""

    def __init__(self, reader: Reader, sign: jax.Array) -> None:
        super().__init__(reader)
        (result,) = reader.op.outputs
        self.size = float(np.sqrt(jnp.finfo(result.dtype).tiny))
        self.result = jnp.full(result.shape, self.size, result.dtype) * sign.astype(result.dtype)

    def __call__(self, op: Op, operands: list[Any], feed: Mapping[str, Any]) -> Any:
        return [self.result], {self.reader.name: self.tap(operands) / jnp.float32(self.size)}


def _activity(*runs: np.ndarray) -> Activity:
    one, two, still, again, up, down = runs
    constant = np.where(still == again, still, np.inf)
    measured = (np.maximum(one, two), constant, np.maximum(up, down))
    noise, constant, gain = (np.where(np.isnan(size), np.inf, size) for size in measured)
    return Activity(noise, one != two, constant, gain)


def _host(reader: Reader, taps: Mapping[str, jax.Array]) -> np.ndarray:
    """The tap of a reader; loops that don't slice its leaf are reduced."""
    tap = np.asarray(taps[reader.name], np.float64)
    loops = len(reader.frame.scans) - reader.sliced
    return tap.max(axis=tuple(range(loops))).ravel()


def probe(inputs: Sequence[Any], seed: int | np.random.Generator) -> Any:
    """Random inputs of the same shapes; integers are zero."""
    rng = np.random.default_rng(seed)

    def draw(leaf: Any) -> jax.Array:
        values = rng.normal(size=jnp.shape(leaf)) if is_float(leaf) else np.zeros(jnp.shape(leaf))
        return jnp.asarray(values.astype(leaf.dtype))

    return jax.tree.map(draw, tuple(inputs))
