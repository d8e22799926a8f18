"""Time of the int8 simulation and of calibration, beside the float forward pass.

    python benchmarks/simulation.py [NAME ...] [--batch N] [--images N] [--json PATH]

All three are jitted, on the same batches. Compilation is not counted. On the CPU the simulation
computes depthwise convolutions by its own, quicker way, so that the ratio can be below one there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from speed import RESULTS, machine, slug, timed
from workloads import workloads

import flaxcle as fc

NAMES = ("lite0", "mobilenet_v2", "resnet50", "vit_b16", "gpt2")


def batches(like: jax.ShapeDtypeStruct, size: int, count: int) -> list[jax.Array]:
    """Inputs like those of a network: images, or tokens."""
    rng, shape = np.random.default_rng(0), (size, *like.shape[1:])
    if jnp.issubdtype(like.dtype, jnp.integer):
        return [jnp.asarray(rng.integers(0, 50257, shape), like.dtype) for _ in range(count)]
    return [jnp.asarray(rng.uniform(-1, 1, shape), like.dtype) for _ in range(count)]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both ratios for one network."""
    workload, config = workloads(0)[name](jnp.float32), fc.QuantConfig()
    fn, params = workload.fn, workload.params
    data = batches(workload.inputs, options.batch, -(-options.images // options.batch))
    ranges = fc.calibrate(fn, params, data, config)
    clean, noisy = jax.jit(fn), jax.jit(fc.fake_quant(fn, config, ranges))
    forward = timed(
        {"float": lambda: clean(params, data[0]), "int8": lambda: noisy(params, data[0])},
        options.repeats,
    )
    whole = timed(
        {
            "float": lambda: [jax.block_until_ready(clean(params, x)) for x in data],
            "calibrate": lambda: fc.calibrate(fn, params, data, config).low,
        },
        1,
    )
    return {
        "network": name,
        "batch": options.batch,
        "images": len(data) * options.batch,
        "forward_seconds": forward,
        "simulation_to_float": forward["int8"] / forward["float"],
        "calibration_seconds": whole,
        "calibration_to_float": whole["calibrate"] / whole["float"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="simulation and calibration beside float")
    parser.add_argument("names", nargs="*", default=list(NAMES), metavar="NAME")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS / f"simulation-{slug()}.json")
    options = parser.parse_args(arguments)
    results = []
    for name in options.names:
        results.append(measure(name, options))
        print(json.dumps(results[-1]), flush=True)
    options.json.write_text(json.dumps(machine() | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
