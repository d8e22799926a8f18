"""flaxcle on the weights of `export.py`: what moves by default, and the residual groups with it."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax.numpy as jnp
from common import arguments
from export import read

import flaxcle as fc

sys.path.insert(0, str(Path(__file__).parents[1]))

from speed import compiled, equalizer, timed
from workloads import workloads

chosen = arguments()
workload = workloads(0)[chosen.network](jnp.float32)
params = read(chosen.folder / f"{chosen.network}.npz", workload)
for tool, spec in (("flaxcle", workload.spec), ("flaxcle-residual", workload.residual)):
    run, compile_seconds = compiled(equalizer(workload, spec), params)
    seconds = timed({"equalize": partial(run, params)}, chosen.repeats)["equalize"]
    line = {
        "tool": tool,
        "seconds": seconds,
        "version": version("flaxcle"),
        "pairs": sum(not group.held for group in spec.groups),
        "sweeps": int(fc.solve(params, spec).sweeps),
        "compile_seconds": compile_seconds,
    }
    print(json.dumps(line))
