"""A two-layer network, its spec, and scales that are powers of two."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle import Scales, Spec
from zoo.base import draw

SHAPES = {
    "a": {"kernel": (5, 4), "bias": (4,)},
    "b": {"kernel": (4, 3), "bias": (3,)},
}
NAMES = ("a/bias", "a/kernel", "b/bias", "b/kernel")


def drawn(name: str, shapes: Any = SHAPES) -> Any:
    """A tree of random leaves of these shapes."""

    def leaf(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return draw(name, jax.tree.map(leaf, shapes, is_leaf=lambda one: isinstance(one, tuple)))


def net(params: Any, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return hidden @ params["b"]["kernel"] + params["b"]["bias"][None]


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((net(params, x) - x[:, :3]) ** 2)


PARAMS = drawn("state params")
SPEC = Spec.from_pairs([("a", "b")], PARAMS)
SCALES = Scales({"a -> b": jnp.array([3.0, -2.0, 0.0, 1.0])})
_CHANNELS = np.array([8.0, 0.25, 1.0, 2.0], np.float32)
FACTORS = {
    "a": {"kernel": np.tile(_CHANNELS, (5, 1)), "bias": _CHANNELS},
    "b": {"kernel": 1 / np.tile(_CHANNELS[:, None], (1, 3)), "bias": np.ones(3, np.float32)},
}


def scaled(tree: Any, power: int = 1) -> Any:
    """A tree of the params' shapes times a power of their factors."""
    return jax.tree.map(lambda leaf, factor: leaf * factor**power, tree, FACTORS)


def assert_same(tree: Any, expected: Any, rtol: float = 0.0) -> None:
    """The same structure and dtypes, and the same bits unless a tolerance is given."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert jnp.asarray(one).dtype == jnp.asarray(other).dtype
        np.testing.assert_allclose(one, other, rtol=rtol, atol=0)


def each(*fields: str) -> set[str]:
    """The paths of all params in these fields of a state."""
    return {f"{field}/{name}" for field in fields for name in NAMES}
