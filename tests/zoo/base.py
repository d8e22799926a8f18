"""What a network of the zoo is, how it is registered, and how its parameters are drawn.

Weights look trained, not initialised: He-sized kernels, biases that matter, gammas of both
signs, variances away from one. They depend on the network's name and the leaf's path only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

PyTree = Any
Chains = tuple[Any, ...]


@dataclass(frozen=True)
class Network:
    """One evaluated network: ``fn(params, *inputs)`` and all that tests may ask of it.

    ``pairs``: a legal declared spec, chains of module paths; None where there is none.
    ``illegal``: a declared spec that changes the function although it looks right.
    ``scales``: number of independent scale symmetries; None when too large to count.
    ``shapes``: shapes of the output leaves in flatten order.
    ``note``: what a reader of ``scales`` must know.
    """

    name: str
    fn: Callable[..., PyTree]
    params: PyTree
    inputs: tuple[jax.Array, ...]
    shapes: tuple[tuple[int, ...], ...]
    pairs: Chains | None = None
    illegal: Chains | None = None
    scales: int | None = None
    note: str = field(default="", repr=False)


_BUILDERS: dict[str, Callable[[], Network]] = {}


def register(build: Callable[[str], Network]) -> None:
    """Enters a builder under its own name."""
    enter(build.__name__, build)


def enter(name: str, build: Callable[..., Network], *args: Any, **facts: Any) -> None:
    """Enters ``build(name, *args, **facts)``, to be called once, on first use."""
    if name in _BUILDERS:
        raise ValueError(f"two networks are called {name!r}")

    @cache
    def once() -> Network:
        with jax.enable_x64(False):  # the first user may be a test in float64
            return build(name, *args, **facts)

    _BUILDERS[name] = once


def networks() -> dict[str, Callable[[], Network]]:
    """All networks by name; each value builds its network on the first call."""
    return dict(_BUILDERS)


def build(name: str) -> Network:
    """The network of this name."""
    return _BUILDERS[name]()


def linen(name: str, module: Any, *inputs: jax.Array, shape: Any, **facts: Any) -> Network:
    """A Linen module as a network over its whole variables dict."""
    abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return Network(name, module.apply, draw(name, abstract), inputs, shapes(shape), **facts)


def nnx_net(
    name: str, make: Callable[[nnx.Rngs], Any], *inputs: jax.Array, shape: Any, **facts: Any
) -> Network:
    """An NNX module as a network over its State."""
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    model.eval()
    graph, abstract = nnx.split(model)

    def fn(state: Any, *args: jax.Array) -> PyTree:
        return nnx.merge(graph, state)(*args)

    return Network(name, fn, draw(name, abstract), inputs, shapes(shape), **facts)


def raw(
    name: str,
    fn: Callable[..., PyTree],
    leaves: PyTree,
    *inputs: jax.Array,
    shape: Any,
    **facts: Any,
) -> Network:
    """A plain function as a network; ``leaves`` is a tree of shapes."""
    is_shape = lambda x: isinstance(x, tuple) and all(isinstance(n, int) for n in x)  # noqa: E731
    abstract = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, jnp.float32), leaves, is_leaf=is_shape
    )
    return Network(name, fn, draw(name, abstract), inputs, shapes(shape), **facts)


def shapes(shape: Any) -> tuple[tuple[int, ...], ...]:
    """One shape, or a tuple of shapes, as a tuple of shapes."""
    return shape if shape and isinstance(shape[0], tuple) else (shape,)


def draw(name: str, abstract: PyTree) -> PyTree:
    """A random value for every leaf, by the role that its name tells."""

    def leaf(path: Any, struct: Any) -> jax.Array:
        where = jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")
        rng = np.random.default_rng(zlib.crc32(f"{name}:{where}".encode()))
        return jnp.asarray(_value(rng, where, struct.shape), struct.dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


def _value(rng: np.random.Generator, where: str, shape: tuple[int, ...]) -> np.ndarray:
    leaf = where.rsplit("/", 1)[-1]
    normal = rng.normal(size=shape)
    if "var" in leaf:
        return np.exp(0.5 * normal)
    if leaf in ("scale", "gamma"):
        return (1 + 0.3 * normal) * rng.choice([-1.0, 1.0], size=shape, p=[0.25, 0.75])
    if "slope" in leaf:
        return 0.25 + 0.05 * normal
    if len(shape) >= 2 and "bias" not in leaf:
        spread = np.exp(0.4 * rng.normal(size=(shape[-1],)))
        return normal * spread * np.sqrt(2 / max(np.prod(shape[:-1]), 1))
    return 0.3 * normal


def image(*shape: int, seed: int = 0) -> jax.Array:
    """A float input of this shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(*shape: int, vocabulary: int, seed: int = 0) -> jax.Array:
    """Token ids in which the largest id occurs, so that samplers know the range."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, shape)
    ids.flat[0] = vocabulary - 1
    return jnp.asarray(ids, jnp.int32)


def avg_pool(x: jax.Array, window: tuple[int, ...], stride: int) -> jax.Array:
    """Mean over windows; Flax's own divides by an integer, which strict promotion refuses."""
    total = nn.pool(x, 0.0, jax.lax.add, window, (stride,) * len(window), "SAME")
    return total / float(np.prod(window))


def layer_norm(x: jax.Array, name: str | None = None) -> jax.Array:
    """Flax's LayerNorm, whose default mixes float64 and float32: strict promotion refuses."""
    return nn.LayerNorm(param_dtype=x.dtype, force_float32_reductions=False, name=name)(x)


def rms_norm(x: jax.Array, name: str | None = None) -> jax.Array:
    """Flax's RMSNorm, in the same manner."""
    return nn.RMSNorm(param_dtype=x.dtype, force_float32_reductions=False, name=name)(x)
