"""The predicted noise of the output, as a function of all scales.

    J(x) = sum over sources of sum over steps of  step(x)**2 / 12 * sum_p gain_p * 2**(-2 f_p(x))
    step(x) = largest over p of range_p * 2**f_p(x)    / number of levels
    f_p(x)  = sum over links of power * x[ids_p]

Scales multiply a tensor along its axes, so sums over a scaled tensor are products of a matrix and
vectors: no scaled weight is made. The largest entry is replaced by a p-norm while scales are
learned, which is such a product too. The invariant: `x` is the only thing that is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxcle.cache import compiled
from flaxcle.learn.sensitivity import Sensitivity
from flaxcle.learn.sources import Source, Sources
from flaxcle.quantize.config import QuantConfig
from flaxcle.ranges import rest_of

_LETTERS = "abcdefghijklmnop"


class Term(NamedTuple):
    """The numbers of a source.

    Attributes:
        gain: of each entry, at scale 1.
        ends: magnitudes of which the largest make up the range, at scale 1: one array for a
            symmetric grid, the upper and the lower end for an asymmetric one.
    """

    gain: jax.Array
    ends: tuple[jax.Array, ...]


def terms_of(sources: Sources, found: Sensitivity, config: QuantConfig) -> dict[str, Term]:
    """The terms of all sources; magnitudes are in units of grid steps."""
    return compiled(_terms, sources, config)(found)


def _terms(sources: Sources, config: QuantConfig, found: Sensitivity) -> dict[str, Term]:
    out = {}
    for source in sources.all:
        bits = config.weight_bits if source.leaf else config.act_bits
        symmetric = config.weight_symmetric if source.leaf else config.act_symmetric
        assert bits is not None
        ends = _ends(found.low[source.name], found.high[source.name], bits, symmetric)
        out[source.name] = Term(found.gain[source.name] / found.energy / 12, ends)
    return out


def _ends(low: jax.Array, high: jax.Array, bits: int, symmetric: bool) -> tuple[jax.Array, ...]:
    if symmetric:
        return (jnp.maximum(jnp.abs(low), jnp.abs(high)) / (2 ** (bits - 1) - 1),)
    levels = 2**bits - 1
    return (jnp.maximum(high, 0) / levels, jnp.maximum(-low, 0) / levels)


def noise(source: Source, term: Term, x: jax.Array) -> jax.Array:
    """Noise over signal that a source adds to the output, with the largest entry as the range."""
    step = sum(_largest(source, end, x) for end in term.ends)
    return jnp.sum(jnp.square(step) * _product(source, term.gain, x, -2.0))


class Norms(NamedTuple):
    """Magnitudes at the scales `at`, to the power `p`, and what they were divided by before."""

    powers: tuple[jax.Array, ...]
    tops: tuple[jax.Array, ...]
    at: jax.Array
    p: jax.Array


def norms_of(source: Source, term: Term, x: jax.Array, p: jax.Array) -> Norms:
    """What the p-norm of a range needs; it holds near the scales `x`."""
    tops = tuple(_largest(source, end, x) for end in term.ends)
    powers = []
    for end, top in zip(term.ends, tops, strict=True):
        share = _scaled(source, end, x) / _opened(source, jnp.where(top > 0, top, 1.0))
        powers.append(jnp.power(share, p))
    return Norms(tuple(powers), tops, x, p)


def soft_noise(source: Source, term: Term, norms: Norms, x: jax.Array) -> jax.Array:
    """`noise` with the p-norm in the place of the largest entry."""
    step = jnp.zeros(())
    for power, top in zip(norms.powers, norms.tops, strict=True):
        total = _product(source, power, x - norms.at, norms.p)
        # Where all is zero the root has no gradient.
        safe = jnp.where(top > 0, total, 1.0)
        step = step + jnp.where(top > 0, top * jnp.exp2(jnp.log2(safe) / norms.p), 0.0)
    return jnp.sum(jnp.square(step) * _product(source, term.gain, x, -2.0))


def _product(source: Source, values: jax.Array, x: jax.Array, factor: Any) -> jax.Array:
    """The sum of `values * 2 ** (factor * f)` for each step size."""
    vectors, letters = [], [_LETTERS[: values.ndim]]
    for axes, exponent in _exponents(source, x):
        vectors.append(jnp.exp2(factor * exponent))
        letters.append("".join(_LETTERS[axis] for axis in axes))
    kept = "".join(_LETTERS[axis] for axis in source.steps)
    return jnp.einsum(f"{','.join(letters)}->{kept}", values, *vectors)


def _largest(source: Source, end: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.max(_scaled(source, end, x), rest_of(end.ndim, source.steps))


def _scaled(source: Source, values: jax.Array, x: jax.Array) -> jax.Array:
    for axes, exponent in _exponents(source, x):
        shape = [size if axis in axes else 1 for axis, size in enumerate(values.shape)]
        values = values * jnp.exp2(exponent).reshape(shape)
    return values


def _opened(source: Source, values: jax.Array) -> jax.Array:
    """One value for each step size, against the array."""
    shape = [size if axis in source.steps else 1 for axis, size in enumerate(source.shape)]
    return values.reshape(shape)


def _exponents(source: Source, x: jax.Array) -> Sequence[tuple[tuple[int, ...], jax.Array]]:
    """The links, those on the same axes added up."""
    out: dict[tuple[int, ...], jax.Array] = {}
    for link in source.links:
        own = jnp.where(link.ids >= 0, x[link.ids], 0.0) * link.power
        out[link.axes] = out[link.axes] + own if link.axes in out else own
    return tuple(out.items())
