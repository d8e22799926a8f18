"""The largest scaled weight of each row, and the position at which it stands.

    maximum[c] = max |W[i, c]| * prod_t factor_t[i, c]      over all axes but those that stay

Weights are read, never copied. The invariant: maxima are exact in any order, so the bits are the
same on one device and on many, and whether a core is reduced as a whole or walked. XLA on the CPU
reduces the first axis of a large matrix at a third of the speed of the memory, so these are walked
there: a few slices at a time meet what is known of all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flaxcle.ranges import Axes, mesh_of, replicated

Factors = Sequence[tuple[Axes, jax.Array]]
Meet = Callable[[jax.Array, Any, jax.Array], jax.Array]

TINY = 2.0**-126  # the smallest normal float32
EXACT = 2**24  # whole numbers up to here are exact as float32
WALKED = 2**22  # weights from which a walk is worth five times the time to compile
STRIDE = 16  # slices that meet at once


def scaled_maximum(core: jax.Array, factors: Factors, axes: Axes, after: Any = ()) -> jax.Array:
    """The maximum of |core| times `factors` at each position along `axes`, flat and float32.

    Args:
        core: weights or their magnitudes.
        factors: for each scale the axes that it lies on and its linear values there.
        axes: the axes that stay, ascending.
        after: what to compute before.
    """
    rest = _rest(core, axes)

    def reduced() -> jax.Array:
        return jnp.max(_product(core, factors, after), axis=rest)

    def walked() -> jax.Array:
        none = jnp.zeros([core.shape[axis] for axis in axes], jnp.float32)
        return _walk(core, factors, none, lambda best, _, new: jnp.maximum(best, new), rest, after)

    return replicated(_either(reduced, walked, core, rest)).ravel()


def where_maximum(core: jax.Array, factors: Factors, axes: Axes, best: jax.Array) -> jax.Array:
    """Where along the other axes `scaled_maximum` stands: flat positions, the last of equals.

    What differs by less than the smallest normal number may count as equal.
    """
    rest = _rest(core, axes)

    def walked() -> jax.Array:
        top = best.reshape([core.shape[axis] for axis in axes])
        none = jnp.zeros(top.shape, jnp.int32)
        meet = lambda at, here, new: jnp.where(new == top, here, at)  # noqa: E731
        return _walk(core, factors, none, meet, rest, best)

    at = _either(lambda: _reduced_position(core, factors, axes, best), walked, core, rest)
    return jnp.where(jnp.isfinite(best), replicated(at).ravel(), 0)


def _reduced_position(core: jax.Array, factors: Factors, axes: Axes, best: jax.Array) -> jax.Array:
    """The largest of position minus gap, where a gap is 0 or larger than any position.

    XLA on the CPU reduces arithmetic without a copy of the weights, but not comparisons.
    """
    rest = _rest(core, axes)
    positions = jnp.arange(math.prod(core.shape[axis] for axis in rest), dtype=jnp.float32)
    positions, best = lax.optimization_barrier((positions, best))  # see _product
    steep = _along(2.0**28 * lax.rsqrt(jnp.maximum(best, TINY)), axes, core)
    gap = (_along(best, axes, core) - _product(core, factors, best)) * steep * steep
    if positions.size > EXACT:
        gap = jnp.minimum(gap, 2.0**30).astype(jnp.int32)
        positions = jnp.arange(positions.size, dtype=jnp.int32)
    return jnp.max(_along(positions, rest, core) - gap, axis=rest).astype(jnp.int32)


def _either(
    reduced: Callable[[], jax.Array], walked: Callable[[], jax.Array], core: jax.Array, rest: Axes
) -> jax.Array:
    """What is quicker.

    On a mesh a slice alone would have to travel. Of other dtypes than float32 XLA on the CPU would
    make a float32 copy before the first slice.
    """
    slices = core.shape[rest[0]] if len(rest) == 1 and rest[0] < core.ndim - 1 else 0
    large = slices >= STRIDE and core.size >= WALKED and core.dtype == jnp.float32
    if not large or not mesh_of(core).empty:
        return reduced()
    return lax.platform_dependent(cpu=walked, default=reduced)


def _walk(
    core: jax.Array, factors: Factors, start: jax.Array, meet: Meet, rest: Axes, after: Any
) -> jax.Array:
    """`known = meet(known, position, magnitudes)` for each slice along an axis."""
    (axis,) = rest
    arrays = _alone(core, factors, after)

    def step(number: Any, known: jax.Array, count: int = STRIDE) -> jax.Array:
        first = number * STRIDE
        parts = [
            lax.dynamic_slice_in_dim(x, first, count, axis) if x.shape[axis] > 1 else x
            for x in arrays
        ]
        for here in range(count):
            at = [lax.index_in_dim(x, min(here, x.shape[axis] - 1), axis, False) for x in parts]
            known = meet(known, first + here, _scaled(at))
        return known

    steps, left = divmod(core.shape[axis], STRIDE)
    known = lax.fori_loop(0, steps, step, start)
    return step(steps, known, left) if left else known


def _product(core: jax.Array, factors: Factors, after: Any) -> jax.Array:
    return _scaled(_alone(core, factors, after))


def _scaled(arrays: Sequence[jax.Array]) -> jax.Array:
    """The magnitudes of weights times factors, in float32."""
    core, *factors = arrays
    return jnp.abs(reduce(jnp.multiply, factors, core.astype(jnp.float32)))


def _alone(core: jax.Array, factors: Factors, after: Any) -> list[jax.Array]:
    """The weights, and factors that broadcast with them, for one reduction alone.

    Without the barrier XLA would find that several reductions need the scaled weights, or the
    weights in float32, or a vector broadcast to their shape, and keep a copy as large as they are.
    """
    values = [factor for _, factor in factors]
    core, values, _ = lax.optimization_barrier((core, values, after))
    lie = zip(factors, values, strict=True)
    return [core, *(_along(value, axes, core) for (axes, _), value in lie)]


def _along(values: jax.Array, axes: Axes, core: jax.Array) -> jax.Array:
    """Values on `axes`, which broadcast with the core."""
    return values.reshape([n if axis in axes else 1 for axis, n in enumerate(core.shape)])


def _rest(core: jax.Array, axes: Axes) -> Axes:
    return tuple(axis for axis in range(core.ndim) if axis not in axes)
