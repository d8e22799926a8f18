"""The folded networks as files for the rivals, and a rival's weights back as params.

One file a network: `weight<i>` in PyTorch's layout and `bias<i>`, in the order of the layers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.jaxpr import trace
from flaxcle.paths import map_named, named_leaves
from flaxcle.rounding.readers import find_readers

sys.path.insert(0, str(Path(__file__).parents[1]))

from workloads import Workload

NETWORKS = ("mobilenet_v2", "lite0", "resnet50")


def kernels(workload: Workload) -> list[str]:
    """The paths of all kernels in the order of use."""
    readers = find_readers(trace(workload.fn, workload.params, workload.inputs))
    return [reader.leaf for reader in readers.values()]


def bias_of(kernel: str, leaves: Mapping[str, Any]) -> str:
    """The bias of a layer, which is its norm's once that is folded."""
    layer = kernel.removesuffix("/kernel")
    norm = layer.replace("Conv_", "BatchNorm_") if "Conv_" in layer else f"{layer}_norm"
    found = [path for path in (f"{layer}/bias", f"{norm}/bias") if path in leaves]
    return found[0]


def to_torch(kernel: np.ndarray) -> np.ndarray:
    """(H, W, I, O) as (O, I, H, W), and (I, O) as (O, I)."""
    return kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T


def from_torch(kernel: np.ndarray) -> np.ndarray:
    """The inverse."""
    return kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T


def write(name: str, workload: Workload, folder: Path) -> None:
    """The weights of a network in the order of its layers."""
    leaves, arrays = named_leaves(workload.params), {}
    for number, path in enumerate(kernels(workload)):
        arrays[f"weight{number}"] = to_torch(np.asarray(leaves[path]))
        arrays[f"bias{number}"] = np.asarray(leaves[bias_of(path, leaves)])
    np.savez(folder / f"{name}.npz", **arrays)


def read(file: Path, workload: Workload) -> Any:
    """Params with the weights of a file."""
    leaves = named_leaves(workload.params)
    with np.load(file) as arrays:
        new: dict[str, np.ndarray] = {}
        for number, path in enumerate(kernels(workload)):
            new[path] = from_torch(arrays[f"weight{number}"])
            new[bias_of(path, leaves)] = arrays[f"bias{number}"]
    return map_named(lambda path, leaf: jnp.asarray(new.get(path, leaf)), workload.params)
