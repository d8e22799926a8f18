"""A zoo of small networks with real topologies; none of them knows the library under test."""

from __future__ import annotations

# Importing a family registers its networks.
from zoo import (
    concat,
    convnets,
    detectors,
    edge_cases,
    foreign,
    layers,
    llama,
    mobile,
    nnx_nets,
    nnx_residual,
    nnx_transformers,
    operations,
    recurrent,
    residual,
    routes,
    shared,
    topologies,
    transformers,
)
from zoo.base import Network, build, networks

__all__ = [
    "Network",
    "build",
    "concat",
    "convnets",
    "detectors",
    "edge_cases",
    "foreign",
    "layers",
    "llama",
    "mobile",
    "networks",
    "nnx_nets",
    "nnx_residual",
    "nnx_transformers",
    "operations",
    "recurrent",
    "residual",
    "routes",
    "shared",
    "topologies",
    "transformers",
]
