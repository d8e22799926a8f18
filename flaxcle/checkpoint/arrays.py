"""Orbax directories: what `StandardCheckpointer` writes and restores.

Arrays are read to the host, without the devices that wrote them. The invariant: containers and
dtypes of a directory that is read and written again stay as orbax knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxcle.checkpoint.extras import package
from flaxcle.errors import CheckpointError
from flaxcle.paths import PyTree

_TREE = "_METADATA"  # the file that every directory with a tree has


def holds_tree(path: Path) -> bool:
    """Whether a directory is an orbax checkpoint of one tree."""
    return (path / _TREE).is_file()


def read_arrays(path: Path) -> tuple[PyTree, dict[str, Any]]:
    """The tree as NumPy arrays and numbers, and the user's metadata.

    Raises:
        CheckpointError: the directory is none of orbax, or not that of one tree.
    """
    if not holds_tree(path):
        inside = sorted(str(file.parent) for file in path.glob(f"*/{_TREE}"))
        inside += sorted(str(file.parent) for file in path.glob(f"*/*/{_TREE}"))
        then = f"pass the directory of one of its trees: {inside[:3]}" if inside else ""
        raise CheckpointError(
            "not the directory of an orbax tree", where=f"{path} has no {_TREE}", then=then
        )
    ocp = package("orbax.checkpoint")
    try:
        with closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as checkpointer:
            about = checkpointer.metadata(path)
            if about.item_metadata is None:
                raise ValueError("it does not say what it holds")
            kinds = jax.tree.map(lambda leaf: _kind(ocp, leaf), about.item_metadata.tree)
            return checkpointer.restore(path, restore_args=kinds), dict(about.custom_metadata or {})
    except (ValueError, OSError) as error:
        what = "can't read this orbax checkpoint"
        raise CheckpointError(what, where=f"{path}: {error}") from error


def write_arrays(path: Path, tree: PyTree, metadata: Mapping[str, Any]) -> None:
    """Writes a tree to a directory that does not exist yet.

    Raises:
        CheckpointError: orbax refuses the tree.
    """
    ocp = package("orbax.checkpoint")
    try:
        with closing(ocp.Checkpointer(ocp.StandardCheckpointHandler())) as checkpointer:
            checkpointer.save(path, tree, custom_metadata=dict(metadata))
    except ValueError as error:
        raise CheckpointError("orbax can't store this tree", where=str(error)) from error


def _kind(ocp: Any, leaf: Any) -> Any:
    """Arrays become NumPy arrays; numbers stay what they are."""
    is_array = type(leaf) is ocp.metadata.ArrayMetadata
    return ocp.RestoreArgs(restore_type=np.ndarray) if is_array else ocp.RestoreArgs()
