"""Observers: what is remembered of a tensor over the calibration data, and the range it gives.

    minmax           smallest and largest value seen
    moving_average   exponential average of the batches' extremes
    percentile       the values that leave (100 - p) percent out, half of it at each end
    mse              the share of the range whose grid has the least squared error, every value
                     standing in the middle of its bin

The last two read a histogram whose bins double in width when a batch exceeds them, so that one
pass over the data suffices. Zeros don't count for `mse`: they are exact on every grid. The
invariant: states merge leaf by leaf, any number of leading axes (a scan's iterations) in front;
NaN stands for a tensor that was not reached, an infinite range for one that held NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.paths import wide_dtype
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.grid import make_grid, snap

State = dict[str, jax.Array]
_KEYS = ("low", "high", "exponent", "counts")
_BY_HISTOGRAM = ("percentile", "mse")
_HALF = 2048
_FRACTIONS = 64
_SMALLEST = 2.0**-100


def look(x: jax.Array, observer: str, ends: tuple[jax.Array, jax.Array] | None = None) -> State:
    """The state of one tensor of one batch; `ends` are its extremes where they are known."""
    x = x.astype(wide_dtype(x.dtype)).ravel()
    low, high = ends or (jnp.min(x), jnp.max(x))
    state = {
        "low": jnp.where(jnp.isnan(low), -jnp.inf, low),
        "high": jnp.where(jnp.isnan(high), jnp.inf, high),
    }
    if observer not in _BY_HISTOGRAM:
        return state
    return state | _histogram(x, jnp.maximum(jnp.abs(low), jnp.abs(high)), observer)


def _histogram(x: jax.Array, top: jax.Array, observer: str) -> State:
    top = jnp.maximum(top, _SMALLEST)
    exponent = jnp.ceil(jnp.log2(top))
    width = jnp.exp2(exponent) / _HALF
    bins = jnp.clip(jnp.floor(x / width) + _HALF, 0, 2 * _HALF - 1).astype(jnp.int32)
    counted = (x != 0).astype(jnp.int32) if observer == "mse" else 1
    counts = jnp.zeros(2 * _HALF, jnp.int32).at[bins].add(counted)
    return {"exponent": exponent, "counts": counts.astype(x.dtype)}


def merge(old: State, new: State, observer: str, momentum: float) -> State:
    """The state after one more batch; a NaN side (not reached) gives way to the other."""
    if observer == "moving_average":
        return {k: _either(old[k], new[k], _blend(old[k], new[k], momentum)) for k in old}
    out = {
        "low": jnp.fmin(old["low"], new["low"]),
        "high": jnp.fmax(old["high"], new["high"]),
    }
    if observer in _BY_HISTOGRAM:
        exponent = jnp.fmax(old["exponent"], new["exponent"])
        counts = [_widen(s["counts"], exponent - s["exponent"]) for s in (old, new)]
        total = counts[0] + counts[1]
        out |= {"exponent": exponent, "counts": _either(counts[0], counts[1], total)}
    return out


def _blend(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    """The moving average; an infinite range stays."""
    return jnp.where(jnp.isinf(old), old, momentum * old + (1 - momentum) * new)


def _either(a: jax.Array, b: jax.Array, both: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(a), b, jnp.where(jnp.isnan(b), a, both))


def _widen(counts: jax.Array, octaves: jax.Array) -> jax.Array:
    """The histogram over a range that is 2**octaves times as wide."""

    def one(row: jax.Array, shift: jax.Array) -> jax.Array:
        shift = jnp.where(jnp.isnan(shift), 0, shift)
        centred = jnp.arange(2 * _HALF, dtype=shift.dtype) - _HALF
        target = jnp.floor(centred / jnp.exp2(shift)).astype(jnp.int32) + _HALF
        return jnp.zeros_like(row).at[target].add(row)

    flat = jax.vmap(one)(counts.reshape(-1, 2 * _HALF), octaves.reshape(-1))
    return flat.reshape(counts.shape)


def range_of(state: State, config: QuantConfig) -> tuple[Any, Any]:
    """The range (low, high) of an activation; leading axes stay."""
    if "counts" not in state:
        return state["low"], state["high"]

    def one(low: jax.Array, high: jax.Array, exponent: jax.Array, counts: jax.Array) -> Any:
        width = jnp.exp2(exponent) / _HALF
        edges = (jnp.arange(2 * _HALF + 1, dtype=width.dtype) - _HALF) * width
        if config.act_observer == "percentile":
            return _percentile(low, high, edges, counts, config.percentile)
        return _least_error(low, high, edges[:-1] + width / 2, counts, config)

    shape = state["low"].shape
    rows = [state[k].reshape(-1, *state[k].shape[len(shape) :]) for k in _KEYS]
    low, high = jax.vmap(one)(*rows)
    return low.reshape(shape), high.reshape(shape)


def _percentile(
    low: jax.Array, high: jax.Array, edges: jax.Array, counts: jax.Array, percentile: float
) -> Any:
    """The outer edges of the bins that hold the two percentiles."""
    tail = jnp.asarray((100.0 - percentile) / 200.0, counts.dtype) * jnp.sum(counts)
    below, above = (jnp.searchsorted(jnp.cumsum(c), tail) for c in (counts, counts[::-1]))
    return jnp.maximum(low, edges[below]), jnp.minimum(high, edges[::-1][above])


def _least_error(
    low: jax.Array,
    high: jax.Array,
    centres: jax.Array,
    counts: jax.Array,
    config: QuantConfig,
) -> Any:
    bits, symmetric = config.act_bits or 8, config.act_symmetric
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)

    def error(fraction: jax.Array) -> jax.Array:
        grid = make_grid(fraction * low, fraction * high, bits, symmetric=symmetric)
        return jnp.sum(counts * (centres - snap(centres, grid)) ** 2)

    best = best_fraction(error, centres.dtype)
    return best * low, best * high


def best_fraction(error: Callable[[jax.Array], jax.Array], dtype: Any) -> jax.Array:
    """The share of the range with the least error; the whole range when others are no better."""
    fractions = jnp.linspace(1, 1 / _FRACTIONS, _FRACTIONS, dtype=dtype)
    return fractions[jnp.argmin(jax.lax.map(error, fractions), axis=0)]
