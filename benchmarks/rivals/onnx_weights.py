"""ONNX files with the exported weights, without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper


def load(name: str, folder: Path) -> Any:
    """The network that `torch_networks.py` exported."""
    return onnx.load(str(folder / f"{name}.onnx"))


def names(model: Any) -> list[tuple[str, str]]:
    """The names of weight and bias of each layer, in the order in which PyTorch met them."""
    nodes = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    return [(node.input[1], node.input[2]) for node in nodes]


def weighted(model: Any, order: list[tuple[str, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of each layer; a tool may have sorted the nodes anew, so names decide."""
    values = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    for weight, bias in order:
        yield values[weight], values[bias]
