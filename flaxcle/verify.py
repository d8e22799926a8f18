"""Is the function unchanged? Two params trees of one function, compared on real inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from flaxcle.errors import FlaxcleError
from flaxcle.paths import PyTree


@dataclass(frozen=True)
class Equivalence:
    """How far two networks' outputs differ.

    Attributes:
        identical: every output is equal bit for bit.
        max_absolute: largest |difference|.
        max_relative: largest |difference| relative to the largest |output| of the same array.
        tolerance: what rounding alone may explain, relative: `2**8` units in the last place of
            the least precise output.

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
        FlaxcleError: an output is not finite, so nothing can be compared.

    Example:
        >>> import jax.numpy as jnp
        >>> fn = lambda p, x: jnp.maximum(x * p["a"], 0) * p["b"]
        >>> verify(fn, {"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 1.5}, jnp.ones(3)).identical
        True
    """
    run = jax.jit(fn)
    pairs = list(
        zip(
            jax.tree.leaves(run(before, *inputs)),
            jax.tree.leaves(run(after, *inputs)),
            strict=True,
        )
    )
    absolute = relative = tolerance = 0.0
    for one, two in pairs:
        first, second = (np.asarray(x).astype(np.float64) for x in (one, two))
        if not (np.isfinite(first).all() and np.isfinite(second).all()):
            raise FlaxcleError(
                "can't compare outputs that are not finite",
                where=f"an output of shape {first.shape}",
                then="check params and inputs for NaN and overflow",
            )
        worst = float(np.max(np.abs(first - second), initial=0.0))
        absolute = max(absolute, worst)
        relative = max(relative, worst / max(float(np.max(np.abs(first), initial=0.0)), 1e-300))
        if jax.numpy.issubdtype(one.dtype, jax.numpy.floating):
            tolerance = max(tolerance, 2**8 * float(jax.numpy.finfo(one.dtype).eps))
    return Equivalence(absolute == 0.0, absolute, relative, tolerance)
