"""Weights of checkpoints: rescaled, compared, and who mirrors them.

The invariant: dtypes stay; what JAX would narrow is refused.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.apply import apply_scales
from flaxcle.errors import CheckpointError, WeightError
from flaxcle.paths import PyTree, dtype_of, named_leaves, shape_of, strip_collection
from flaxcle.spec import Scales, Spec

_ROUNDINGS = 8  # of a factor, of its product with a weight, and of the factor that undoes it


def rescaled(params: PyTree, scales: Scales, spec: Spec, *, inverse: bool = False) -> PyTree:
    """`apply_scales` on arrays from a file.

    Raises:
        WeightError: a leaf is float64, and JAX is not set to compute in it.
    """
    leaves = named_leaves(params)
    for path in spec.paths:
        leaf = leaves.get(path, 0)
        if jnp.result_type(leaf) != dtype_of(leaf):
            raise WeightError(
                f"JAX would narrow a leaf to {jnp.result_type(leaf)}",
                where=f"{path!r} is {dtype_of(leaf)}",
                then="set the environment variable JAX_ENABLE_X64=1",
            )
    return apply_scales(params, scales, spec, inverse=inverse)


def unexplained(plain: PyTree, scaled: PyTree, scales: Scales, spec: Spec) -> list[str]:
    """The leaves of `scaled` that are not those of `plain` times the scales.

    Raises:
        CheckpointError: the two have different leaves.
    """
    found = named_leaves(scaled)
    expected = named_leaves(rescaled(plain, scales, spec))
    kinds = [{p: (shape_of(x), dtype_of(x)) for p, x in e.items()} for e in (expected, found)]
    if kinds[0] != kinds[1]:
        odd = sorted({path for path, _ in kinds[0].items() ^ kinds[1].items()})
        raise CheckpointError(
            "the checkpoints are not those of one network",
            where=f"name, shape or dtype differ, first of {odd[0]!r}",
        )
    moved = set(spec.paths)
    return [path for path in found if not _equal(expected[path], found[path], path in moved)]


def mirrors(params: PyTree, spec: Spec) -> list[str]:
    """Leaves with the name and shape of a scaled one in another branch of the tree."""
    leaves = named_leaves(params)
    moved = set(spec.paths)
    ends = {f"/{strip_collection(path)}": shape_of(leaves[path]) for path in moved}
    return [
        path
        for path, leaf in leaves.items()
        if path not in moved
        and any(path.endswith(end) and shape_of(leaf) == ends[end] for end in ends)
    ]


def _equal(expected: Any, found: Any, rounded: bool) -> bool:
    one, two = np.asarray(expected), np.asarray(found)
    if not rounded:
        return one.tobytes() == two.tobytes()
    tolerance = _ROUNDINGS * float(jnp.finfo(one.dtype).eps)
    wide = one.astype(np.float64), two.astype(np.float64)
    return np.allclose(*wide, rtol=tolerance, atol=float(jnp.finfo(one.dtype).tiny), equal_nan=True)
