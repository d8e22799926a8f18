"""PPQ: layerwise equalization, ten sweeps; residual groups take part."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from common import arguments, run
from ppq.api import load_onnx_graph
from ppq.quantization.optim import LayerwiseEqualizationPass

SWEEPS = 10
chosen = arguments()
torch.set_num_threads(chosen.threads)


def loaded() -> Any:
    """A fresh graph."""
    return load_onnx_graph(str(chosen.folder / f"{chosen.network}.onnx"))


def equalized(network: Any) -> Any:
    """The graph itself, which the pass changes in place."""
    LayerwiseEqualizationPass(iterations=SWEEPS).optimize(network, [], None, None)
    return network


def weighted(network: Any) -> Any:
    """Weight and bias of each layer in order."""
    for operation in network.topological_sort():
        if operation.type in ("Conv", "Gemm"):
            weight, bias = (one.value.numpy() for one in operation.parameters[:2])
            turned = operation.attributes.get("transB", 0) or operation.type == "Conv"
            yield (weight if turned else weight.T), bias


def pairs(_: Any) -> int:
    """How many pairs of layers it scales."""
    graph = loaded()
    layers = [op for op in graph.operations.values() if op.type in ("Conv", "Gemm")]
    return len(
        LayerwiseEqualizationPass(1).find_equalization_pair(
            graph=graph, interested_operations=layers
        )
    )


run(
    "ppq",
    loaded,
    equalized,
    weighted,
    chosen,
    version=version("ppq"),
    pairs=pairs,
    sweeps=SWEEPS,
)
