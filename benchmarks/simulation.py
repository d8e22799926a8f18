"""Time of the int8 simulation and of calibration, beside the float forward pass.

    python benchmarks/simulation.py [NAME ...] [--batch N] [--images N] [--json PATH]

All are jitted, on the same batches. Compilation is not counted. On the CPU simulation and
calibration compute depthwise convolutions by a quicker way of their own, so that the ratio can be
below one there; the entry `quick` is the float pass that computes them so as well.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from speed import RESULTS, machine, slug, timed
from workloads import workloads

import flaxcle as fc
from flaxcle.jaxpr import Computed, trace

DEPTHWISE = ("lite0", "mobilenet_v2")
NAMES = ("lite0", "mobilenet_v2", "resnet50", "vit_b16", "gpt2")
TOKENS = 128  # of a text


def batches(like: jax.ShapeDtypeStruct, size: int, count: int) -> list[jax.Array]:
    """Inputs like those of a network: images, or texts."""
    rng = np.random.default_rng(0)
    if jnp.issubdtype(like.dtype, jnp.integer):
        draw = lambda: rng.integers(0, 50257, (size, TOKENS))  # noqa: E731
    else:
        draw = lambda: rng.uniform(-1, 1, (size, *like.shape[1:]))  # noqa: E731
    return [jnp.asarray(draw(), like.dtype) for _ in range(count)]


def over(run: Callable[..., Any], params: Any, data: list[jax.Array]) -> None:
    """All batches, one after the other."""
    for x in data:
        jax.block_until_ready(run(params, x))


def quick(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The float function with its depthwise convolutions as the simulation computes them."""

    def run(params: Any, x: jax.Array) -> list[jax.Array]:
        program = trace(fn, params, x)
        convs = [op for op in program.graph.flat if op.primitive == "conv_general_dilated"]
        return program.run(params, (x,), {op: Computed() for op in convs}).outputs

    return run


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The ratios for one network."""
    workload, config = workloads(0)[name](jnp.float32), fc.QuantConfig()
    fn, params = workload.fn, workload.params
    data = batches(workload.inputs, options.batch, -(-options.images // options.batch))
    ranges = fc.calibrate(fn, params, data, config)
    floats = {"float": jax.jit(fn)} | ({"quick": jax.jit(quick(fn))} if name in DEPTHWISE else {})
    passes = floats | {"int8": jax.jit(fc.fake_quant(fn, config, ranges))}
    forward = timed(
        {key: partial(run, params, data[0]) for key, run in passes.items()}, options.repeats
    )
    whole = timed(
        {key: partial(over, run, params, data) for key, run in floats.items()}
        | {"calibrate": lambda: fc.calibrate(fn, params, data, config).low},
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
        text = json.dumps(machine() | {"results": results}, indent=1)
        options.json.write_text(text + "\n")  # each time: a run takes long


if __name__ == "__main__":
    main()
