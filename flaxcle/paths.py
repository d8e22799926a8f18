"""Leaves by name: key path <-> `'params/Conv_0/kernel'`.

A canonical path joins the keys with `/`, leaves int keys as text and drops the trailing `value`
that Flax boxes (`nn.Partitioned`) and `nnx.State` variables add. The invariant: every function
returns a tree of exactly the same structure, boxes included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flaxcle.errors import PathError, TraceError, closest

PyTree = Any
_COLLECTIONS = ("params", "batch_stats", "state", "clips")


def canonical(key_path: tuple[Any, ...]) -> str:
    """The name of a leaf from its JAX key path."""
    if len(key_path) > 1 and key_path[-1] == jax.tree_util.GetAttrKey("value"):
        key_path = key_path[:-1]
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """All leaves by canonical path, in flatten order.

    >>> named_leaves({"Dense_0": {"kernel": 1.0, "bias": 2.0}})
    {'Dense_0/bias': 2.0, 'Dense_0/kernel': 1.0}

    Raises:
        PathError: two leaves have the same path.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {canonical(path): leaf for path, leaf in flat}
    if len(leaves) != len(flat):
        twice = Counter(canonical(path) for path, _ in flat).most_common(1)[0][0]
        raise PathError(
            f"two leaves have the same path {twice!r}",
            where=f"the tree has {len(flat)} leaves and {len(leaves)} paths",
            then="rename one of the keys: '/' inside a key reads as a separator",
        )
    return leaves


def map_named(function: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
    """Maps `function(path, leaf)` over the leaves; the structure stays."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: function(canonical(keys), leaf), tree
    )


def replace_leaves(tree: PyTree, new: Mapping[str, Any]) -> PyTree:
    """The tree with the named leaves exchanged, cast to the dtype of the old ones."""

    def exchange(path: str, leaf: Any) -> Any:
        return jnp.asarray(new[path]).astype(jnp.result_type(leaf)) if path in new else leaf

    return map_named(exchange, tree)


def check_arrays(tree: PyTree) -> None:
    """Refuses leaves that can't enter a compiled function.

    Raises:
        TraceError: a leaf is neither an array nor a number.
    """
    for path, leaf in named_leaves(tree).items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
            raise TraceError(
                "params hold a leaf that is no array",
                where=f"{path!r} is a {type(leaf).__name__}",
                then="pass the arrays alone and put the rest back inside fn, in Equinox: "
                "arrays, rest = eqx.partition(model, eqx.is_inexact_array), "
                "fn = lambda arrays, x: eqx.combine(arrays, rest)(x)",
            )


def is_float(leaf: Any) -> bool:
    """Whether a leaf has a real floating dtype; no for random keys, functions and other objects."""
    return bool(jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.floating))


def dtype_of(leaf: Any) -> jnp.dtype:
    """The dtype of an array, a number or a ShapeDtypeStruct."""
    return jnp.dtype(leaf.dtype) if hasattr(leaf, "dtype") else jnp.dtype(jnp.result_type(leaf))


def wide_dtype(dtype: Any) -> jnp.dtype:
    """The dtype to compute in: float64 for float64, float32 for all narrower ones.

    Unlike `jnp.promote_types` it works under strict dtype promotion.
    """
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def float_leaves(tree: PyTree) -> list[jax.Array]:
    """The floating-point leaves, wide enough for sums."""
    leaves = map(jnp.asarray, jax.tree.leaves(tree))
    return [leaf.astype(wide_dtype(leaf.dtype)) for leaf in leaves if is_float(leaf)]


def squared_error(found: PyTree, wanted: PyTree) -> jax.Array:
    """The sum of squared differences of the floating-point leaves, in float32."""
    pairs = zip(float_leaves(found), float_leaves(wanted), strict=True)
    parts = (jnp.sum(jnp.square(a - b)).astype(jnp.float32) for a, b in pairs)
    return sum(parts, jnp.zeros((), jnp.float32))


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of an array or a ShapeDtypeStruct; `()` for anything else."""
    return tuple(getattr(leaf, "shape", ()))


def parent(path: str) -> str:
    """The module part of a leaf path: `'Conv_0/kernel'` -> `'Conv_0'`."""
    return path.rpartition("/")[0]


def leaf_name(path: str) -> str:
    """The last part of a leaf path: `'Conv_0/kernel'` -> `'kernel'`."""
    return path.rpartition("/")[2]


def strip_collection(path: str) -> str:
    """The path without a leading Flax collection: `'params/Conv_0/kernel'` -> `'Conv_0/kernel'`."""
    head, _, rest = path.partition("/")
    return rest if head in _COLLECTIONS and rest else path


def resolve(name: str, known: Iterable[str]) -> list[str]:
    """Leaf paths that a user's name means: that leaf, or all the leaves of that module.

    A leading collection (`params/`, `batch_stats/`) may be given or left out.

    >>> resolve("Conv_0", ["params/Conv_0/bias", "params/Conv_0/kernel", "params/Conv_01/bias"])
    ['params/Conv_0/bias', 'params/Conv_0/kernel']

    Raises:
        PathError: nothing has this name; the message lists the closest names.
    """
    known = list(known)
    name = name.strip("/")
    for view in (str, strip_collection):
        hits = [path for path in known if view(path) == name or view(path).startswith(name + "/")]
        if hits:
            return hits
    names = {strip_collection(path): None for path in known}
    modules = {parent(path): None for path in names if parent(path)}
    raise PathError(
        f"no leaf or module is named {name!r}",
        where=f"the tree has {len(known)} leaves in {len(modules)} modules",
        then=f"use one of the closest names: {closest(name, [*modules, *names])}",
    )
