"""The central table applied in NumPy, and functions evaluated in float64: the tests' yardstick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle import Group, Scales, Spec
from flaxcle.paths import map_named, named_leaves
from flaxcle.spec.table import channels, normal_axes

PyTree = Any


def random_log2(
    spec: Spec, seed: int = 0, whole: bool = False, reach: float = 3.0
) -> dict[str, np.ndarray]:
    """Random base-2 logarithms of every scale, up to `reach`; whole ones are powers of two."""
    rng = np.random.default_rng(seed)
    draws = {group.name: rng.uniform(-reach, reach, group.shape) for group in spec.groups}
    return {name: np.rint(draw) if whole else draw for name, draw in draws.items()}


def random_scales(spec: Spec, seed: int, reach: float) -> Scales:
    """The same for the library."""
    log2 = random_log2(spec, seed, reach=reach)
    return Scales({name: jnp.asarray(values, jnp.float32) for name, values in log2.items()})


def apply_table(params: PyTree, spec: Spec, log2: dict[str, np.ndarray]) -> PyTree:
    """`leaf *= scale[index] ** power` for each row."""
    factors: dict[str, np.ndarray] = {}
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(params).items()}
    for group in spec.groups:
        for path, factor in row_factors(group, shapes, log2[group.name]):
            factors[path] = factors.get(path, 1.0) * factor

    def scaled(path: str, leaf: Any) -> Any:
        factor = factors.get(path)
        return leaf if factor is None else (np.asarray(leaf) * factor).astype(leaf.dtype)

    return map_named(scaled, params)


def row_factors(
    group: Group, shapes: dict[str, tuple[int, ...]], log2: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """For each row of a group the factor of its leaf, broadcastable to the leaf."""
    rows = []
    for site in group.sites:
        shape = shapes[site.path]
        ids, axes = channels(site, shape), normal_axes(site, len(shape))
        exponent = np.where(ids >= 0, log2.ravel()[ids], 0.0) * float(site.power)
        order = np.argsort(axes)
        view = [shape[axis] if axis in axes else 1 for axis in range(len(shape))]
        rows.append((site.path, np.exp2(exponent.transpose(order)).reshape(view)))
    return rows


def table_of(group: Group, shapes: dict[str, tuple[int, ...]]) -> frozenset[tuple[object, ...]]:
    """What a group multiplies, whatever it is called and however its rows are written."""
    rows = []
    for site in group.sites:
        axes = normal_axes(site, len(shapes[site.path]))
        ids = channels(site, shapes[site.path]).transpose(np.argsort(axes))
        rows.append((site.path, tuple(sorted(axes)), site.power, ids.shape, ids.tobytes()))
    return frozenset(rows)


def in_float64(fn: Callable[..., PyTree], *inputs: Any) -> Callable[[PyTree], list[np.ndarray]]:
    """`params -> outputs` of `fn` with all floats widened, compiled once."""
    run = jax.jit(fn)

    def call(params: PyTree) -> list[np.ndarray]:
        with jax.enable_x64(True):
            tree, args = jax.tree.map(_widen, (params, inputs))
            return [np.asarray(leaf) for leaf in jax.tree.leaves(run(tree, *args))]

    return call


def assert_preserved(
    fn: Callable[..., PyTree], params: PyTree, spec: Spec, *inputs: Any, exact: bool = True
) -> None:
    """Random scales move every leaf of the spec and the function by 1e-9 at most, in float64.

    With powers of two the outputs are the same bits, unless an operation of `fn` is not exact.
    """
    run, wide = in_float64(fn, *inputs), widened(params)
    scaled = apply_table(wide, spec, random_log2(spec))
    old, new = named_leaves(wide), named_leaves(scaled)
    for path in {site.path for group in spec.groups for site in group.sites}:
        assert not np.array_equal(old[path], new[path]), path
    before = run(wide)
    for one, two in zip(before, run(scaled), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-9 * np.abs(one).max())
    if exact:
        again = run(apply_table(wide, spec, random_log2(spec, whole=True)))
        for one, two in zip(before, again, strict=True):
            np.testing.assert_array_equal(two, one)


def widened(params: PyTree) -> PyTree:
    """The params as NumPy float64, so that a table can be applied to them without rounding."""
    return jax.tree.map(_wide_numpy, params)


def _wide_numpy(leaf: Any) -> Any:
    floating = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.asarray(leaf, np.float64) if floating else leaf


def _widen(leaf: Any) -> Any:
    return jnp.asarray(_wide_numpy(leaf)) if hasattr(leaf, "dtype") else leaf


def changed(before: Any, after: Any) -> set[str]:
    """The leaves that differ; structure, dtypes and shapes must not."""
    assert jax.tree.structure(before) == jax.tree.structure(after)
    old, new = named_leaves(before), named_leaves(after)
    for path, leaf in old.items():
        assert (leaf.dtype, leaf.shape) == (new[path].dtype, new[path].shape)
    return {path for path in old if not np.array_equal(old[path], new[path])}
