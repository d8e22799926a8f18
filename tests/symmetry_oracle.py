"""Counts the scale symmetries of a function numerically, knowing nothing of its layers.

A multiplicative rescaling of parameters, ``theta_i -> theta_i * exp(t * g_i)`` with ``g`` constant,
leaves ``fn(params, *inputs)`` unchanged for all parameters and inputs exactly when

    sum_i g_i * theta_i * d fn / d theta_i = 0        for every output, every theta, every input.

Stack these rows over random parameters and random inputs: the dimension of the null space is the
number of independent scale symmetries, over every way of scaling single elements, so it needs no
axes and has no gauge.
A Spec is *sound* when its generators lie in that null space and *complete* when they span it.

For small networks only (a few thousand parameters). Call with ``jax_enable_x64`` set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Count:
    """Result of the oracle.

    ``symmetries``: dimension of the null space, unused elements left out.
    ``gap``: (smallest singular value counted as non-zero, largest counted as zero), relative to the
    largest. Doubt a count whose two numbers are not many orders of magnitude apart.
    ``leak``: largest |row . generator| of the generators given, relative; 0 to rounding when they
    are sound.
    ``rank``: rank of the generators given.
    """

    symmetries: int
    unused: int
    gap: tuple[float, float]
    leak: float | None = None
    rank: int | None = None

    @property
    def sound(self) -> bool:
        return self.leak is not None and self.leak < 1e-8

    @property
    def complete(self) -> bool:
        return self.rank == self.symmetries


def _is_float(x) -> bool:
    return jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)


def _randomized(rng: np.random.Generator, leaf, positive: bool):
    """The leaf's shape at a random, sign-mixed magnitude; `positive` leaves (variances) keep it."""
    leaf = np.asarray(leaf)
    value = np.exp(0.4 * rng.normal(size=leaf.shape)) * max(float(np.abs(leaf).mean()), 0.3)
    return value if positive else value * rng.choice([-1.0, 1.0], size=leaf.shape)


def jacobian(
    fn: Callable,
    params,
    inputs: Sequence,
    *,
    seed: int = 0,
    rows_per_parameter: float = 1.7,
    positive: Callable[[str], bool] = lambda path: "var" in path,
    input_scale: float = 2.0,
) -> np.ndarray:
    """Rows ``theta_i * d fn_k / d theta_i`` over float leaves in flatten order, rows normalised."""
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    leaves = [leaf for _, leaf in flat]
    moving = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    n = sum(int(np.size(leaves[i])) for i in moving)
    rng = np.random.default_rng(seed)

    def outputs(floats, args, pick):
        full = list(leaves)
        for i, value in zip(moving, floats, strict=True):
            full[i] = value
        out = fn(jax.tree_util.tree_unflatten(tree, full), *args)
        return jnp.concatenate([jnp.ravel(o) for o in jax.tree.leaves(out) if _is_float(o)])[pick]

    size = sum(
        int(np.prod(o.shape))
        for o in jax.tree.leaves(jax.eval_shape(fn, params, *inputs))
        if jnp.issubdtype(o.dtype, jnp.floating)
    )
    block = min(size, 64)
    jac = jax.jit(jax.jacrev(outputs))
    rows = []
    for _ in range(max(12, int(np.ceil(rows_per_parameter * n / block)))):
        floats = [
            jnp.asarray(_randomized(rng, leaves[i], positive(names[i])), jnp.float64)
            for i in moving
        ]
        args = tuple(
            jnp.asarray(rng.normal(size=np.shape(x)) * input_scale)
            if _is_float(x)
            else jnp.asarray(rng.integers(0, int(np.max(x)) + 1, np.shape(x)))
            for x in inputs
        )
        parts = jac(floats, args, jnp.asarray(rng.choice(size, block, replace=False)))
        rows.append(
            np.concatenate(
                [
                    (np.asarray(p) * np.asarray(v)).reshape(block, -1)
                    for p, v in zip(parts, floats, strict=True)
                ],
                1,
            )
        )
    matrix = np.concatenate(rows)
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix[norms[:, 0] > 0] / norms[norms[:, 0] > 0]


def generators(spec, params) -> np.ndarray:
    """One column per scale of a flaxcle Spec: d log(element) / d log(scale), in flatten order.

    Reads only the central table: ``spec.groups[*].shape`` and ``.sites[*]`` with ``path, axes,
    power, index``.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    shapes = [np.shape(leaf) for _, leaf in flat]
    floats = [_is_float(leaf) for _, leaf in flat]
    starts = np.cumsum(
        [0] + [int(np.prod(s)) if f else 0 for s, f in zip(shapes, floats, strict=True)]
    )
    columns = []
    for group in spec.groups:
        block = np.zeros((starts[-1], int(np.prod(group.shape))))
        for site in group.sites:
            k = _leaf_index(site.path, names)
            shape = shapes[k]
            channel = (
                np.arange(int(np.prod(group.shape))).reshape(group.shape)
                if site.index is None
                else np.asarray(site.index)
            )
            where = [1] * len(shape)
            for axis in site.axes:
                where[axis] = shape[axis]
            order = np.argsort([a % len(shape) for a in site.axes])
            channel = np.transpose(channel.reshape([shape[a] for a in site.axes]), order)
            full = np.broadcast_to(channel.reshape(where), shape).ravel()
            rows = starts[k] + np.arange(full.size)
            used = full >= 0
            np.add.at(block, (rows[used], full[used]), site.power)
        columns.append(block)
    return np.concatenate(columns, 1) if columns else np.zeros((starts[-1], 0))


def _leaf_index(path: str, names: list[str]) -> int:
    hits = [
        i
        for i, name in enumerate(names)
        if name == path
        or name.removesuffix("/value") == path
        or name.removeprefix("params/") == path
    ]
    if len(hits) != 1:
        raise KeyError(f"site path {path!r} names {len(hits)} leaves of {names}")
    return hits[0]


def count(fn: Callable, params, inputs: Sequence, spec=None, **options) -> Count:
    """Counts the symmetries of ``fn``; with a spec, also checks that it is sound and complete."""
    matrix = jacobian(fn, params, inputs, **options)
    scale = np.linalg.norm(matrix, axis=0)
    used = scale > 1e-12 * scale.max()
    values = np.linalg.svd(matrix[:, used] / scale[used], compute_uv=False)
    if values.size < used.sum():
        values = np.concatenate([values, np.zeros(used.sum() - values.size)])
    relative = np.maximum(values / values[0], 1e-18)
    below = [i for i in range(1, relative.size) if relative[i] < 1e-9]
    cut = max(below, key=lambda i: relative[i - 1] / relative[i]) if below else relative.size
    gap = (float(relative[cut - 1]), float(relative[cut]) if cut < relative.size else 0.0)
    found = int(relative.size - cut)
    if spec is None:
        return Count(found, int((~used).sum()), gap)
    columns = generators(spec, params)
    columns = columns / np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    leak = float(np.abs(matrix @ columns).max()) if columns.size else 0.0
    values = np.linalg.svd(columns[used], compute_uv=False) if columns.size else np.zeros(1)
    rank = int((values > 1e-9 * max(values.max(), 1e-300)).sum())
    return Count(found, int((~used).sum()), gap, leak, rank)
