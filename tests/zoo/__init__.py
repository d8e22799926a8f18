"""A zoo of small networks with real topologies; none of them knows the library under test."""

from __future__ import annotations

from zoo import convnets, nnx_nets, nnx_residual, residual
from zoo.base import Network, build, networks

__all__ = ["Network", "build", "convnets", "networks", "nnx_nets", "nnx_residual", "residual"]
