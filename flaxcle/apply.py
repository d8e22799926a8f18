"""Scales onto anything that mirrors the params: params, gradients, moments, EMA copies.

    leaf *= prod over sites of 2 ** (slot * power * log2 scale[index])

If params are multiplied by s, gradients of the same loss are divided by s, and squared gradients by
s**2: a slot is such an exponent. The invariant: one multiplication for each leaf, by a factor of
at least float32 that is exact for whole exponents; structure, dtypes, weak types and shardings
stay, and leaves that no site names are the same objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxcle.errors import ConfigError, SpecError
from flaxcle.paths import PyTree, map_named, named_leaves, shape_of, wide_dtype
from flaxcle.ranges import is_identity, mesh_of, replicated
from flaxcle.solve import plan_of, solve
from flaxcle.solve.options import magnitudes
from flaxcle.spec import Scales, Site, Spec, check_fit
from flaxcle.spec.parts import parts_of
from flaxcle.spec.table import channels, normal_axes

Slot = Literal["params", "first_moment", "second_moment", "squared_update"]
Leaves = dict[str, Any]
FactorOf = Callable[[Fraction, Any], jax.Array]
SLOTS: Mapping[str, int] = {
    "params": 1,
    "first_moment": -1,
    "second_moment": -2,
    "squared_update": 2,
}


class Mean(NamedTuple):
    """Says of a leaf that it is the mean over `axis` of one of `shape`.

    Such are the two factors of a second moment; the other one is the mean over `other_axis`.
    """

    shape: tuple[int, ...]
    axis: int
    other: str
    other_axis: int


class Move(NamedTuple):
    """One multiplication: the leaf `name` moves as the spec's leaf `path`, to a power."""

    name: str
    path: str
    exponent: int
    mean: Mean | None = None


def apply_scales(
    tree: PyTree, scales: Scales, spec: Spec, *, slot: Slot = "params", inverse: bool = False
) -> PyTree:
    """Multiplies every leaf that the spec names by its scales.

        leaf *= prod over sites of scale[index] ** (slot * power)

    with slot 1 for params, -1 for gradients and first moments, -2 for second moments, and 2 for the
    squared updates that AdaDelta keeps.

    Args:
        tree: the params, or a tree of the same paths and shapes (gradients, a moment, an EMA).
        scales: one array for each group of the spec.
        spec: the table.
        slot: what the leaves are.
        inverse: undoes what the same call without it has done.

    Returns:
        A tree of the same structure; leaves keep their shape, dtype and sharding.

    Raises:
        ConfigError: no such slot.
        SpecError, PathError, WeightError: the spec does not fit the tree (see `check_fit`), or
            the scales belong to another spec.

    Example:
        >>> from flaxcle import Group, Spec
        >>> spec = Spec((Group("a", (2,), (Site("a", (0,)),)),))
        >>> scales = Scales({"a": jnp.array([1.0, -2.0])})
        >>> apply_scales({"a": jnp.array([3.0, 8.0])}, scales, spec)["a"].tolist()
        [6.0, 2.0]
    """
    if slot not in SLOTS:
        raise ConfigError(f"no slot is called {slot!r}", then=f"use one of {', '.join(SLOTS)}")
    leaves = check_fit(spec, tree)
    check_scales(scales, spec)
    return _applied(tree, leaves, scales, spec, SLOTS[slot] * (-1 if inverse else 1), False)


def equalize(params: PyTree, spec: Spec, *, donate: bool = False, **options: Any) -> PyTree:
    """The same function, with weights whose channels have balanced ranges.

        apply_scales(params, solve(params, spec, **options), spec)

    Pure: it can be jitted (with the spec static) and vmapped over checkpoints.

    Args:
        params: the pytree of weights.
        spec: which scales may move.
        donate: whether the memory of the leaves that move is reused; they can't be read
            afterwards. Under `jit` use its `donate_argnums` instead.
        options: of `solve`.

    Returns:
        A tree of the same structure, dtypes and shardings. Under `jit` with automatic sharding
        the compiler chooses shardings: pass the params' as `out_shardings`.

    Raises:
        ConfigError, SpecError, PathError, WeightError: as `solve`, before anything is donated.

    Example:
        >>> from flaxcle import Group
        >>> params = {"a": jnp.array([[8.0, 1.0]]), "b": jnp.array([[2.0], [4.0]])}
        >>> pair = Group("a -> b", (2,), (Site("a", (1,)), Site("b", (0,), -1)))
        >>> balanced = equalize(params, Spec((pair,)))
        >>> balanced["a"].tolist(), balanced["b"].tolist()
        ([[4.0, 2.0]], [[4.0], [2.0]])

    References:
        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction".
    """
    scales, moving = solved(params, spec, **options)
    if not moving.groups:
        return params
    return _applied(params, named_leaves(params), scales, moving, 1, donate)


def solved(params: PyTree, spec: Spec, **options: Any) -> tuple[Scales, Spec]:
    """The scales of `solve`, and the part of the spec that moves."""
    scales = solve(params, spec, **options)
    ranges, granularity = options.get("ranges", "weights"), options.get("granularity", "per_tensor")
    leaves = check_fit(spec, params)
    return scales, plan_of(spec, leaves, magnitudes(ranges), granularity).moving


def check_scales(scales: Scales, spec: Spec) -> None:
    """Raises a SpecError where the scales are not those of the spec's groups."""
    for group in spec.groups:
        found = shape_of(scales.log2[group.name]) if group.name in scales.log2 else None
        if found != group.shape:
            raise SpecError(
                f"the scales don't belong to this spec: group {group.name!r} has shape "
                f"{group.shape}, its scales {'are missing' if found is None else found}",
                then="solve with the same spec",
            )


def _applied(
    tree: PyTree, leaves: Leaves, scales: Scales, spec: Spec, exponent: int, donate: bool
) -> PyTree:
    new: Leaves = {}
    for part in parts_of(spec, leaves):
        own = part.leaves(leaves)
        moves = tuple(Move(path, path, exponent) for path in own)
        log2 = Scales({name: scales.log2[group] for name, group in part.groups.items()})
        done = moved(own, moves, log2, part.spec, donate=donate)
        new |= {part.paths[path]: leaf for path, leaf in done.items()}
    return map_named(lambda path, leaf: new.get(path, leaf), tree)


def moved(
    leaves: Leaves, moves: tuple[Move, ...], scales: Scales, spec: Spec, *, donate: bool = False
) -> Leaves:
    """The leaves that the moves name, after them."""
    moving = {move.name: leaves[move.name] for move in moves}
    log2 = {group.name: scales.log2[group.name] for group in spec.groups}
    return _compiled(spec, moves, donate, shardings_of(moving))(moving, log2)


def shardings_of(leaves: Leaves) -> tuple[tuple[str, Any], ...] | None:
    """The shardings that the results must keep; none on a single device or for tracers."""
    placed = {path: getattr(leaf, "sharding", None) for path, leaf in leaves.items()}
    if not any(place and len(place.device_set) > 1 for place in placed.values()):
        return None
    committed = {p: place if place and leaves[p].committed else None for p, place in placed.items()}
    return tuple(committed.items())


@lru_cache(maxsize=256)
def _compiled(
    spec: Spec,
    moves: tuple[Move, ...],
    donate: bool,
    shardings: tuple[tuple[str, Any], ...] | None,
) -> Callable[[Leaves, dict[str, jax.Array]], Leaves]:
    """The jitted multiplication of all leaves that move."""
    rows: dict[str, list[tuple[int, Site]]] = {}
    start = 0
    for group in spec.groups:
        for site in group.sites:
            rows.setdefault(site.path, []).append((start, site))
        start += group.size

    def multiply(leaves: Leaves, log2: dict[str, jax.Array]) -> Leaves:
        factor_of = _factors(spec, log2, mesh_of(*leaves.values()))
        return {move.name: _moved(move, leaves, rows[move.path], factor_of) for move in moves}

    out = dict(shardings) if shardings else None
    return jax.jit(multiply, out_shardings=out, donate_argnums=(0,) if donate else ())


def _factors(spec: Spec, log2: Mapping[str, jax.Array], mesh: Any) -> FactorOf:
    """The factors of all channels for a power and a dtype, and a last 1 for 'not scaled'."""
    joined = jnp.concatenate([log2[group.name].ravel() for group in spec.groups])
    # The barrier makes XLA compute the powers once, and not anew for each leaf.
    joined = replicated(jnp.append(joined, jnp.zeros(1, joined.dtype)), mesh)
    joined = lax.optimization_barrier(joined)

    @cache
    def factor_of(power: Fraction, dtype: Any) -> jax.Array:
        factors = power_of_two(joined.astype(dtype) * jnp.asarray(float(power), dtype))
        return lax.optimization_barrier(replicated(factors))

    return factor_of


def _moved(
    move: Move, leaves: Leaves, rows: Sequence[tuple[int, Site]], factor_of: FactorOf
) -> jax.Array:
    leaf = jnp.asarray(leaves[move.name])
    wide = wide_dtype(leaf.dtype)
    shape = move.mean.shape if move.mean else leaf.shape
    vectors = [
        _spread(factor_of(move.exponent * site.power, wide), start, site, shape)
        for start, site in rows
    ]
    # Without the barrier XLA would share the cast with the solver, and keep it in memory.
    leaf, vectors = lax.optimization_barrier((leaf, vectors))
    factor = math.prod(vectors, start=jnp.ones((1,) * len(shape), wide))
    if move.mean:
        factor = _mean_factor(factor, leaves[move.mean.other].astype(wide), move.mean)
    out = (leaf.astype(wide) * jnp.broadcast_to(factor, leaf.shape)).astype(leaf.dtype)
    return leaf.at[...].set(out) if leaf.weak_type else out


def _mean_factor(factor: jax.Array, other: jax.Array, mean: Mean) -> jax.Array:
    """The factor of a mean over an axis, over which the means `other` weigh the factors.

    Exact where the factor does not vary along the axis. Else it is that of a matrix of rank one,
    so that the product of both means moves by exactly the factor.
    """
    if factor.shape[mean.axis] == 1:
        return lax.squeeze(factor, (mean.axis,))
    weights = jnp.expand_dims(other, mean.other_axis)
    total = jnp.sum(weights, mean.axis)
    return jnp.sum(factor * weights, mean.axis) / jnp.maximum(total, jnp.finfo(total.dtype).tiny)


def _spread(vector: jax.Array, start: int, site: Site, shape: tuple[int, ...]) -> jax.Array:
    """The factors of a site, shaped to multiply its leaf."""
    axes = normal_axes(site, len(shape))
    ids = channels(site, shape).transpose(np.argsort(axes))
    if is_identity(ids, ids.size):
        row = vector[start : start + ids.size]
    else:
        row = vector[np.where(ids >= 0, start + ids, vector.size - 1)]
    return replicated(row).reshape([size if axis in axes else 1 for axis, size in enumerate(shape)])


def power_of_two(exponents: jax.Array) -> jax.Array:
    """`2 ** exponents`, exact where they are whole (`exp2` need not be)."""
    whole = jnp.clip(jnp.round(exponents), -126, 126)
    bits = (whole.astype(jnp.int32) + 127) << 23
    exact = lax.bitcast_convert_type(bits, jnp.float32).astype(exponents.dtype)
    return jnp.exp2(exponents - whole) * exact
