"""Brevitas: equalization of the graph, as its defaults have it; residual groups take part."""

from __future__ import annotations

import copy
from importlib.metadata import version

import torch
from brevitas.fx import symbolic_trace
from brevitas.graph.equalize import EqualizeGraph
from common import arguments, run
from torch_networks import load, weighted

chosen = arguments()
torch.set_num_threads(chosen.threads)
network = load(chosen.network, chosen.folder)

run(
    "brevitas",
    lambda: symbolic_trace(copy.deepcopy(network)),
    lambda graph: EqualizeGraph(return_regions=True).apply(graph),
    lambda done: (
        (layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in weighted(done[0])
    ),
    chosen,
    version=version("brevitas"),
    pairs=lambda done: len(done[1]),
    sweeps="at most 10",
)
