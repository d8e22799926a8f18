"""Compiled functions that are kept: the same question about the same network compiles once.

`jax.jit` remembers by the identity of the function, and `partial(question, fn)` is a new one on
every call. Here equal static arguments give the same compiled function. The invariant: as with
`jax.jit`, a function of the user's must not depend on state that changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax

KEPT = 64


def compiled(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    """`jax.jit(partial(function, *static))`, not made anew while the arguments are equal."""
    try:
        return _kept(function, *static)
    except TypeError:  # a callable that can't be hashed, such as a module that holds arrays
        return jax.jit(partial(function, *static))


@lru_cache(KEPT)
def _kept(function: Callable[..., Any], *static: Any) -> Callable[..., Any]:
    return jax.jit(partial(function, *static))
