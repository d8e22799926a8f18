"""Trees as files know them: plain containers of arrays, and flat tables of names.

A box (`nn.Partitioned`, an `nnx.Variable`) is stored as the array in it, so that a leaf has the
same name in memory, in a spec and on the disk. The invariant: names are canonical paths, and what
was written comes back with the same names, shapes, dtypes and bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.errors import CheckpointError, closest
from flaxcle.paths import PyTree, dtype_of, map_named, named_leaves, shape_of

_IN_A_BOX = (jax.tree_util.GetAttrKey("value"),)


def unboxed(tree: PyTree) -> PyTree:
    """The tree with arrays in place of boxes.

    Raises:
        CheckpointError: a leaf is no array and no number.
    """
    plain = jax.tree.map(
        lambda node: jax.tree.leaves(node)[0] if _is_box(node) else node, tree, is_leaf=_is_box
    )
    for path, leaf in named_leaves(plain).items():
        is_key = jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)
        if is_key or not isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float):
            raise CheckpointError(
                "can't store a leaf that is no array of numbers",
                where=f"{path!r} is a {type(leaf).__name__}",
                then="take it out of the tree; for random keys store jax.random.key_data(key)",
            )
    return plain


def nested(leaves: Mapping[str, Any]) -> PyTree:
    """Nested dictionaries from names with slashes; flat when a leaf would have to be a dictionary.

    >>> nested({"params/Conv_0/kernel": 1, "layers.0.weight": 2})
    {'params': {'Conv_0': {'kernel': 1}}, 'layers.0.weight': 2}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                return dict(leaves)
        if name in node:
            return dict(leaves)
        node[name] = leaf
    return tree


def grafted(like: PyTree, tree: PyTree) -> PyTree:
    """A tree like another one, with the leaves of a checkpoint.

    Leaves go to the shardings of `like` where it has any; otherwise they stay NumPy arrays.

    Raises:
        CheckpointError: names, shapes or dtypes differ.
    """
    wanted, stored = named_leaves(like), named_leaves(tree)
    found = {_unboxed_name(path, wanted): leaf for path, leaf in stored.items()}
    if wanted.keys() != found.keys():
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        near = f"; the closest are {closest(missing[0], found)}" if missing else ""
        raise CheckpointError(
            "the checkpoint and `like` have different leaves",
            where=f"not in the checkpoint: {missing[:3]}, not in `like`: {extra[:3]}{near}",
            then="pass a tree of the same network as `like`, or none",
        )
    return map_named(lambda path, leaf: _placed(path, leaf, found[path]), like)


def _is_box(node: Any) -> bool:
    """Whether a node holds one leaf, under the key `value`."""
    inside, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda child: child is not node)
    return [path for path, _ in inside] == [_IN_A_BOX] and jax.tree_util.all_leaves([inside[0][1]])


def _unboxed_name(path: str, wanted: Mapping[str, Any]) -> str:
    """The name without the last part that other programs store for a box."""
    name = path.removesuffix("/value")
    return name if name in wanted else path


def _placed(path: str, like: Any, leaf: Any) -> Any:
    if not hasattr(like, "dtype"):
        return type(like)(leaf)
    if shape_of(like) != shape_of(leaf) or dtype_of(like) != dtype_of(leaf):
        raise CheckpointError(
            "a leaf of the checkpoint does not fit `like`",
            where=f"{path!r} is {dtype_of(leaf)} of shape {shape_of(leaf)} in the checkpoint, "
            f"{dtype_of(like)} of shape {shape_of(like)} in `like`",
            then="pass a tree of the same network as `like`, or none",
        )
    if isinstance(like, np.ndarray | np.generic) or getattr(like, "sharding", None) is None:
        return leaf
    return jax.device_put(leaf, like.sharding if getattr(like, "committed", True) else None)
