"""One step of an optax optimizer under any promotion rule.

Optax mixes integer counts with floats, which strict promotion refuses. The invariant: only optax's
own arithmetic sees the standard rule; losses and gradients keep the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from flaxcle.paths import PyTree

Update = Callable[..., tuple[PyTree, PyTree]]


def descended(update: Update, gradient: PyTree, state: PyTree, x: PyTree) -> tuple[Any, PyTree]:
    """The point and the optimizer's state after one step."""
    with jax.numpy_dtype_promotion("standard"):
        updates, state = update(gradient, state, x)
    return optax.apply_updates(x, updates), state
