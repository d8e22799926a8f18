"""Brevitas: equalization of the graph; residual groups take part.

Once with its defaults, and once, with one thread, until no scale moves by more than 0.1 %, as
flaxcle does by default, or its sweeps are used up.
"""

from __future__ import annotations

import copy
from argparse import Namespace
from importlib.metadata import version
from typing import Any

import brevitas.graph.equalize as brevitas
import torch
from brevitas.fx import symbolic_trace
from common import arguments, run
from torch_networks import load, weighted

SWEEPS = 1000

chosen = arguments()
torch.set_num_threads(chosen.threads)
network = load(chosen.network, chosen.folder)
balance, balances = brevitas._cross_layer_equalization, 0


def counted(*args: Any, **options: Any) -> Any:
    """One balance of one region."""
    global balances
    balances += 1
    return balance(*args, **options)


def equalized(graph: Any, **options: Any) -> Any:
    """The graph, the number of its regions, and the sweeps over them."""
    global balances
    balances = 0
    graph, regions = brevitas.EqualizeGraph(return_regions=True, **options).apply(graph)
    return graph, len(regions), balances // len(regions)


def timed(tool: str, chosen: Namespace, warm: bool = True, **options: Any) -> None:
    """Prints a line for the options."""
    run(
        tool,
        lambda: symbolic_trace(copy.deepcopy(network)),
        lambda graph: equalized(graph, **options),
        lambda done: (
            (w.weight.detach().numpy(), w.bias.detach().numpy()) for w in weighted(done[0])
        ),
        chosen,
        warm,
        version=version("brevitas"),
        pairs=lambda done: done[1],
        sweeps=lambda done: done[2],
    )


brevitas._cross_layer_equalization = counted
timed("brevitas", chosen)
if chosen.threads == 1:
    once = Namespace(**vars(chosen) | {"repeats": 1})
    timed("brevitas-converged", once, warm=False, iterations=SWEEPS, threshold=1e-3)
