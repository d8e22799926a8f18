"""Fashion-MNIST's original files: gzipped IDX, a big-endian header and then bytes.

An IDX header is two zero bytes, a type (8: unsigned byte), the rank, and one uint32 for each axis.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
Split = Literal["train", "t10k"]


def read_split(split: Split, folder: Path = DEBIAN) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and labels (n,), both uint8, of the training or the test set."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{split!r} in {folder} holds images {images.shape} and labels {labels.shape}; "
            "expected (n, 28, 28) and (n,)"
        )
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """One gzipped IDX file of unsigned bytes."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: install Debian's package dataset-fashion-mnist, or download the "
            "four original files and give their folder"
        )
    try:
        raw = gzip.decompress(path.read_bytes())
        zeros, kind, rank = struct.unpack_from(">HBB", raw)
        shape = struct.unpack_from(f">{rank}I", raw, 4)
        array = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise ValueError(f"{path} is no gzipped IDX file, or is damaged: {error}") from error
    if zeros or kind != 8:
        raise ValueError(f"{path} holds no unsigned bytes (type {kind})")
    return array
