"""PPQ: layerwise equalization, ten sweeps; residual groups take part."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from common import arguments, run
from onnx_weights import load, names
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
    found = [op.parameters for op in network.operations.values() if op.type in ("Conv", "Gemm")]
    values = {one.name: one.value.numpy() for own in found for one in own}
    for weight, bias in names(load(chosen.network, chosen.folder)):
        yield values[weight], values[bias]


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
