"""`load_checkpoint` and `save_checkpoint`: params with their spec and scales, in one unit.

Spec and scales are JSON text: in the header of a safetensors file, in two files inside an orbax
directory. The invariant: one rename puts params, spec and scales in place together, so scales are
always those of the params beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flaxcle.apply import check_scales
from flaxcle.checkpoint.arrays import holds_tree, read_arrays, write_arrays
from flaxcle.checkpoint.replace import check_free, recover, replacing
from flaxcle.checkpoint.tensors import read_tensors, write_tensors
from flaxcle.checkpoint.trees import grafted, unboxed
from flaxcle.errors import CheckpointError
from flaxcle.paths import PyTree
from flaxcle.spec import Scales, Spec, check_fit

SPEC, SCALES = "flaxcle_spec", "flaxcle_scales"
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        params: the tree; nested dictionaries (and lists, from orbax) of NumPy arrays.
        spec: the spec that is stored beside it.
        scales: the scales that the params were multiplied by; `None` for params as trained.
        metadata: what its writer noted: the text of a safetensors header, orbax's custom metadata.

    Example:
        >>> Checkpoint({"a": 1.0}).scales is None
        True
    """

    params: PyTree
    spec: Spec | None = None
    scales: Scales | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def load_checkpoint(path: str | Path, *, like: PyTree = None) -> Checkpoint:
    """Reads an orbax directory or a safetensors file.

    Names in a safetensors file become nested dictionaries at their slashes: a leaf has the name
    that it has in a spec. Names with dots stay whole.

    Args:
        path: the directory of one orbax tree (what `StandardCheckpointer` saved), or a file.
        like: a tree of the same names, shapes and dtypes: `ShapeDtypeStruct`s or params. The
            result then has its structure (`FrozenDict`, boxes, `nnx.State`) and its shardings.

    Raises:
        CheckpointError: there is nothing that can be read, or it does not fit `like`.
        SpecError: the stored spec or scales can't be read.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_checkpoint(path, {"Dense_0": {"bias": np.zeros(2)}}, metadata={"epoch": "3"})
        >>> load_checkpoint(path)
        Checkpoint(params={'Dense_0': {'bias': array([0., 0.])}}, ..., metadata={'epoch': '3'})
    """
    path = Path(path).absolute()
    recover(path)
    if not path.exists():
        raise CheckpointError("there is no checkpoint", where=str(path), then="check the path")
    if path.is_dir():
        params, metadata = read_arrays(path)
        texts = {name: file.read_text("utf-8") for name, file in _files(path) if file.is_file()}
    else:
        params, metadata = read_tensors(path)
        texts = {name: metadata.pop(name) for name in (SPEC, SCALES) if name in metadata}
    spec = Spec.from_json(texts[SPEC]) if SPEC in texts else None
    scales = Scales.from_json(texts[SCALES]) if SCALES in texts else None
    params = params if like is None else grafted(like, params)
    return Checkpoint(params, spec, scales, metadata)


def save_checkpoint(
    path: str | Path,
    params: PyTree,
    *,
    spec: Spec | None = None,
    scales: Scales | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a safetensors file, if the name ends in `.safetensors`, else an orbax directory.

    The checkpoint appears whole or not at all. One that is replaced stays whole until then, also
    when the process is killed.

    Args:
        path: where; missing parent directories are made.
        params: any tree of arrays; boxes are stored as the arrays in them.
        spec: stored beside the params.
        scales: those that the params were multiplied by, so that it can be undone.
        metadata: stored beside them; in a safetensors file what is no text is stored as JSON.
        overwrite: whether a checkpoint of that name is replaced.

    Raises:
        CheckpointError: the name is taken, a leaf can't be stored, or scales come without a spec.
        SpecError, PathError, WeightError: spec, scales and params don't fit each other.

    Example:
        >>> import tempfile, numpy as np
        >>> path = Path(tempfile.mkdtemp(), "model")
        >>> save_checkpoint(path, {"Dense_0": {"bias": np.zeros(2)}})
        >>> load_checkpoint(path).params
        {'Dense_0': {'bias': array([0., 0.])}}
    """
    path = Path(path).absolute()
    check_target(path, overwrite)
    tree = unboxed(params)
    texts = _texts(tree, spec, scales)
    metadata = dict(metadata or {})
    with replacing(path, overwrite=overwrite) as new:
        if path.suffix == _SUFFIX:
            write_tensors(new, tree, _as_text(metadata) | texts)
        else:
            write_arrays(new, tree, metadata)
            for name, file in _files(new):
                if name in texts:
                    file.write_text(texts[name], "utf-8")


def _files(folder: Path) -> list[tuple[str, Path]]:
    return [(name, folder / f"{name}.json") for name in (SPEC, SCALES)]


def check_target(path: Path, overwrite: bool) -> None:
    """Raises CheckpointError where nothing may be written.

    What is no checkpoint is not replaced, however much the user insists.
    """
    check_free(path, overwrite)
    is_file = path.suffix == _SUFFIX
    if path.exists() and (path.is_dir() if is_file else not holds_tree(path)):
        kind = "safetensors file" if is_file else "orbax checkpoint"
        raise CheckpointError(
            f"won't replace what is no {kind}", where=str(path), then="choose another name"
        )


def _texts(tree: PyTree, spec: Spec | None, scales: Scales | None) -> dict[str, str]:
    """What is stored beside the params, checked against them."""
    if spec is None:
        if scales is not None:
            raise CheckpointError("scales mean nothing without their spec", then="pass spec, too")
        return {}
    check_fit(spec, tree)
    if scales is None:
        return {SPEC: spec.to_json()}
    check_scales(scales, spec)
    return {SPEC: spec.to_json(), SCALES: scales.to_json()}


def _as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
