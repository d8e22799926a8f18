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


def weighted(model: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weight and bias of each layer in order; those of dense layers as PyTorch has them."""
    graph = getattr(model, "graph", None) or model.model.graph
    values = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight, bias = (numpy_helper.to_array(values[name]) for name in node.input[1:3])
            turned = any(a.name == "transB" and a.i for a in node.attribute)
            yield (weight.T if node.op_type == "Gemm" and not turned else weight), bias
