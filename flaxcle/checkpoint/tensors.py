"""Safetensors files: one flat table of named arrays, and text about it in the header.

Names are canonical paths (`params/Conv_0/kernel`); names of other programs (`layers.0.weight`) are
top-level keys of a flat tree. The invariant: the bytes of an array are those that were given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flaxcle.checkpoint.extras import package
from flaxcle.checkpoint.trees import nested
from flaxcle.errors import CheckpointError
from flaxcle.paths import PyTree, dtype_of, named_leaves

_KINDS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 bfloat16 float32 float64"
_ONE_FILE = "pass one whole .safetensors file with arrays of 8 to 64 bits, no float8"


def read_tensors(path: Path) -> tuple[PyTree, dict[str, str]]:
    """All arrays of a file as a tree of NumPy arrays, and the text of its header.

    Raises:
        CheckpointError: it is no safetensors file, or has dtypes that NumPy lacks.
    """
    safetensors = package("safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = file.keys()
            leaves = {name: file.get_tensor(name) for name in names}
            metadata = dict(file.metadata() or {})
    except (safetensors.SafetensorError, AttributeError) as error:
        raise CheckpointError(
            "can't read this safetensors file", where=f"{path}: {error}", then=_ONE_FILE
        ) from error
    return nested(leaves), metadata


def write_tensors(path: Path, tree: PyTree, metadata: Mapping[str, str]) -> None:
    """Writes the leaves of a tree by name.

    Raises:
        CheckpointError: a leaf has a dtype that could not be read back, or the disk is full.
    """
    # The library writes the memory as it lies there, whatever the strides. Numbers get the dtype
    # that they have in JAX, not NumPy's wide one.
    leaves = {
        name: np.asarray(leaf, dtype_of(leaf), order="C")
        for name, leaf in named_leaves(tree).items()
    }
    for name, leaf in leaves.items():
        if leaf.dtype.name not in _KINDS.split():
            raise CheckpointError(
                "can't store an array of this dtype in a safetensors file",
                where=f"{name!r} is {leaf.dtype}",
                then=f"store it as one of {_KINDS}, or in an orbax directory",
            )
    try:
        package("safetensors.numpy").save_file(leaves, path, metadata=dict(metadata))
    except package("safetensors").SafetensorError as error:
        raise CheckpointError("can't write this safetensors file", where=str(error)) from error
