"""Observers: what is remembered of a tensor over the calibration data, and the range it gives.

    minmax           smallest and largest value seen
    moving_average   exponential average of the batches' extremes
    percentile       the values that leave (100 - p) percent out, half of it at each end
    mse              the clipping with the least expected squared error: step**2 / 12 for what lies
                     inside, the squared distance to the bound for what is clipped

The last two read a histogram whose bins double in width when a batch exceeds them, so that one
pass over the data suffices. The invariant: states merge leaf by leaf, any number of leading axes
(a scan's iterations) in front, and a tensor that was not reached is NaN.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.grid import make_grid

State = dict[str, jax.Array]
_HALF = 2048
_FRACTIONS = 64


def needs_histogram(observer: str) -> bool:
    """Whether the observer reads the distribution, not only the extremes."""
    return observer in ("percentile", "mse")


def look(x: jax.Array, observer: str) -> State:
    """The state of one tensor of one batch."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).ravel()
    state = {"low": jnp.min(x), "high": jnp.max(x)}
    if needs_histogram(observer):
        top = jnp.maximum(jnp.max(jnp.abs(x)), jnp.finfo(jnp.float32).tiny)
        state["exponent"] = jnp.ceil(jnp.log2(top)).astype(x.dtype)
        width = jnp.exp2(state["exponent"]) / _HALF
        bins = jnp.clip(jnp.floor(x / width) + _HALF, 0, 2 * _HALF - 1).astype(jnp.int32)
        state["counts"] = jnp.zeros(2 * _HALF, x.dtype).at[bins].add(1)
    return state


def merge(old: State, new: State, observer: str, momentum: float) -> State:
    """The state after one more batch; a NaN side (not reached) gives way to the other."""
    if observer == "moving_average":
        blend = {k: momentum * old[k] + (1 - momentum) * new[k] for k in old}
        return {k: _either(old[k], new[k], blend[k]) for k in old}
    out = {
        "low": jnp.fmin(old["low"], new["low"]),
        "high": jnp.fmax(old["high"], new["high"]),
    }
    if needs_histogram(observer):
        exponent = jnp.fmax(old["exponent"], new["exponent"])
        counts = [_widen(s["counts"], exponent - s["exponent"]) for s in (old, new)]
        total = counts[0] + counts[1]
        out |= {"exponent": exponent, "counts": _either(counts[0], counts[1], total)}
    return out


def _either(a: jax.Array, b: jax.Array, both: jax.Array) -> jax.Array:
    return jnp.where(jnp.isnan(a), b, jnp.where(jnp.isnan(b), a, both))


def _widen(counts: jax.Array, octaves: jax.Array) -> jax.Array:
    """The histogram over a range that is 2**octaves times as wide."""

    def one(row: jax.Array, shift: jax.Array) -> jax.Array:
        shift = jnp.where(jnp.isnan(shift), 0, shift)
        centred = jnp.arange(2 * _HALF) - _HALF
        target = jnp.floor(centred / jnp.exp2(shift)).astype(jnp.int32) + _HALF
        return jnp.zeros_like(row).at[target].add(row)

    flat = jax.vmap(one)(counts.reshape(-1, 2 * _HALF), octaves.reshape(-1))
    return flat.reshape(counts.shape)


def range_of(
    state: State, observer: str, config: QuantConfig, bits: int, *, symmetric: bool
) -> tuple[Any, Any]:
    """The range (low, high) that the state gives; leading axes stay."""
    if not needs_histogram(observer):
        return state["low"], state["high"]

    def one(low: jax.Array, high: jax.Array, exponent: jax.Array, counts: jax.Array) -> Any:
        centres = (jnp.arange(2 * _HALF) - _HALF + 0.5) * jnp.exp2(exponent) / _HALF
        if observer == "percentile":
            return _percentile(low, high, centres, counts, config.percentile)
        return _least_error(low, high, centres, counts, bits, symmetric)

    shape = state["low"].shape
    rows = [state[k].reshape(-1) for k in ("low", "high", "exponent")]
    low, high = jax.vmap(one)(*rows, state["counts"].reshape(-1, 2 * _HALF))
    return low.reshape(shape), high.reshape(shape)


def _percentile(
    low: jax.Array, high: jax.Array, centres: jax.Array, counts: jax.Array, percentile: float
) -> Any:
    share = jnp.cumsum(counts) / jnp.sum(counts)
    tail = (100.0 - percentile) / 200.0
    first = jnp.searchsorted(share, jnp.asarray(tail, share.dtype))
    last = jnp.searchsorted(share, jnp.asarray(1.0 - tail, share.dtype))
    return jnp.maximum(low, centres[first]), jnp.minimum(high, centres[last])


def _least_error(
    low: jax.Array,
    high: jax.Array,
    centres: jax.Array,
    counts: jax.Array,
    bits: int,
    symmetric: bool,
) -> Any:
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    fractions = jnp.linspace(1 / _FRACTIONS, 1, _FRACTIONS, dtype=centres.dtype)

    def error(fraction: jax.Array) -> jax.Array:
        grid = make_grid(fraction * low, fraction * high, bits, symmetric=symmetric)
        bottom = (grid.lowest - grid.zero) * grid.scale
        top = (grid.highest - grid.zero) * grid.scale
        beyond = centres - jnp.clip(centres, bottom, top)
        inside = (beyond == 0) & (counts > 0)
        return jnp.sum(counts * (beyond**2 + jnp.where(inside, grid.scale**2 / 12, 0)))

    best = fractions[jnp.argmin(jax.lax.map(error, fractions))]
    return best * low, best * high
