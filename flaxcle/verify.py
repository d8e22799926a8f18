"""Is the function unchanged? Two params trees of one function, compared on real inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.errors import FlaxcleError
from flaxcle.paths import PyTree, check_arrays, shape_of

_SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Equivalence:
    """How far two networks' outputs differ.

    Attributes:
        identical: every output is equal bit for bit.
        max_absolute: largest |difference|.
        max_relative: largest |difference| of one output, relative to its largest |value|; of the
            output where it is largest in units of the tolerance.
        tolerance: what rounding alone explains there: `2**8` units in the last place of its
            dtype, nothing for integers.

    Example:
        >>> Equivalence(True, 0.0, 0.0, 1e-5).equivalent
        True
    """

    identical: bool
    max_absolute: float
    max_relative: float
    tolerance: float

    @property
    def equivalent(self) -> bool:
        """Whether rounding alone explains the difference."""
        return self.identical or self.max_relative <= self.tolerance

    def __bool__(self) -> bool:
        """The same as `equivalent`, for `assert verify(...)`."""
        return self.equivalent


def verify(fn: Callable[..., Any], before: PyTree, after: PyTree, *inputs: Any) -> Equivalence:
    """Evaluates `fn` with both params and measures the difference of all outputs.

    Args:
        fn: the function `fn(params, *inputs)`.
        before: its params.
        after: the rescaled params. (After `expose_clips` compare outputs by hand: the functions
            differ.)
        inputs: real inputs; the more, the stronger the evidence.

    Raises:
        FlaxcleError: an output is not finite, the two params give outputs of different shapes,
            or there is no output: nothing can be compared.
        TraceError: a param is no array.

    Example:
        >>> import jax.numpy as jnp
        >>> fn = lambda p, x: jnp.maximum(x * p["a"], 0) * p["b"]
        >>> verify(fn, {"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 1.5}, jnp.ones(3)).identical
        True
    """
    for params in (before, after):
        check_arrays(params)
    run = jax.jit(fn)
    first, second = (jax.tree.leaves(run(params, *inputs)) for params in (before, after))
    return difference(first, second)


def difference(before: list[Any], after: list[Any]) -> Equivalence:
    """The same for outputs that are at hand, of one function or of two.

    Raises:
        FlaxcleError: as `verify`.
    """
    _check_outputs(before, after)
    differences = [_difference(one, two) for one, two in zip(before, after, strict=True)]
    _, relative, tolerance = max(differences, key=lambda d: d[1] / max(d[2], _SMALLEST))
    absolute = max(difference[0] for difference in differences)
    return Equivalence(absolute == 0.0, absolute, relative, tolerance)


def _check_outputs(before: list[Any], after: list[Any]) -> None:
    shapes = [[shape_of(leaf) for leaf in leaves] for leaves in (before, after)]
    if shapes[0] != shapes[1]:
        raise FlaxcleError(
            "can't compare functions with different outputs",
            where=f"shapes {shapes[0]} before and {shapes[1]} after",
            then="pass two params trees of one function",
        )
    if not before:
        raise FlaxcleError("the function returns no array", then="return the outputs to compare")


def _difference(one: Any, two: Any) -> tuple[float, float, float]:
    """Largest absolute and relative difference of one output, and its dtype's tolerance."""
    first, second = (np.asarray(x).astype(np.float64) for x in (one, two))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise FlaxcleError(
            "can't compare outputs that are not finite",
            where=f"an output of shape {first.shape}",
            then="check params and inputs for NaN and overflow",
        )
    absolute = float(np.max(np.abs(first - second), initial=0.0))
    relative = absolute / max(float(np.max(np.abs(first), initial=0.0)), _SMALLEST)
    floating = jnp.issubdtype(one.dtype, jnp.floating)
    return absolute, relative, 2**8 * float(jnp.finfo(one.dtype).eps) if floating else 0.0
