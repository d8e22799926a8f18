"""Trained weights, which are committed, and checkpoints of a training, which are not.

Invariant: a checkpoint's file name holds a hash of the training's settings, so that no training
goes on from a state of another one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from build_data import write_npz

WEIGHTS = Path(__file__).parent / "weights"
CACHE = Path(__file__).parents[1] / ".cache"


def save_weights(name: str, variables: Any) -> Path:
    """Writes weights/NAME.npz: kernels and embeddings as float16, vectors as float32."""
    flat = flatten_dict(jax.tree.map(np.asarray, variables), sep="/")
    small = {key: a.astype(np.float16 if a.ndim > 1 else np.float32) for key, a in flat.items()}
    path = WEIGHTS / f"{name}.npz"
    write_npz(path, small)
    return path


def load_weights(name: str) -> dict[str, Any]:
    """The variables in weights/NAME.npz, all float32."""
    path = WEIGHTS / f"{name}.npz"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: python -m benchmarks.accuracy_nets.train_{name} writes it"
        )
    with np.load(path) as arrays:
        flat = {key: jax.numpy.asarray(arrays[key], np.float32) for key in arrays}
    return unflatten_dict(flat, sep="/")


def checkpoint_path(name: str, settings: Any) -> Path:
    """The file of a training with these settings, whose repr says all of them."""
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
    return CACHE / f"{name}-{digest}.npz"


def save_checkpoint(path: Path, state: Any, epochs: int) -> None:
    """Writes the leaves of `state` and the number of epochs it has seen."""
    path.parent.mkdir(exist_ok=True)
    leaves = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, epochs=epochs, **leaves)
    unfinished.replace(path)


def load_checkpoint(path: Path, start: Any) -> tuple[Any, int]:
    """The saved state and its number of epochs; `start` and 0 if there is none."""
    if not path.exists():
        return start, 0
    with np.load(path) as arrays:
        leaves = [arrays[f"leaf{i}"] for i in range(len(arrays) - 1)]
        return jax.tree.unflatten(jax.tree.structure(start), leaves), int(arrays["epochs"])
