"""Time, compile time and memory of `equalize`, beside a jitted copy of the same tree.

    python benchmarks/speed.py [NAME ...] [--dtypes float32 bfloat16] [--layers N] [--json PATH]

On any backend of JAX. Each network runs in a process of its own, so that its memory is its own. In
each repeat `equalize` and the copy take turns, so that their ratio holds when the machine's speed
drifts. Both ways: the groups that move by default, and the residual groups with them.
`speed_plot.py` draws the results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from workloads import Workload, workloads

import flaxcle as fc

BANDWIDTH_BYTES = 2**28
RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What ran it."""
    device = jax.devices()[0]
    cores = f"{os.cpu_count()} cores, {platform.machine()}"
    return {
        "device": device.device_kind if device.platform != "cpu" else f"CPU, {cores}",
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
    }


def slug() -> str:
    """The device in a file's name."""
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else f"cpu{os.cpu_count()}"
    return kind.lower().replace(" ", "-")


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, in turn; the first turn is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                samples[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in samples.items()}


def compiled(call: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, float]:
    """The executable, and the seconds for tracing and compiling it."""
    start = time.perf_counter()
    run = jax.jit(call, **options).lower(*args).compile()
    return run, time.perf_counter() - start


def extra_memory(run: Any) -> int:
    """Bytes that a donating call needs beside the params."""
    used = run.memory_analysis()
    return used.temp_size_in_bytes + used.output_size_in_bytes - used.alias_size_in_bytes


def equalizer(workload: Workload, spec: fc.Spec) -> Callable[[Any], Any]:
    """`equalize` of one checkpoint, or of all."""
    call = partial(fc.equalize, spec=spec)
    return jax.vmap(call) if workload.checkpoints else call


def copy_of(tree: Any) -> Any:
    """The same numbers in new memory: one read and one write."""
    return jax.tree.map(lambda x: x + jnp.zeros((), x.dtype), tree)


def bandwidth(repeats: int) -> float:
    """Bytes per second, read and written, of a copy of one large array."""
    block = jnp.ones(BANDWIDTH_BYTES // 4, jnp.float32)
    run, _ = compiled(copy_of, block)
    return 2 * BANDWIDTH_BYTES / timed({"copy": lambda: run(block)}, repeats)["copy"]


def measure(name: str, dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for the groups that move by default, and one with the residual groups."""
    workload = workloads(options.layers)[name](jnp.dtype(dtype))
    params = workload.params
    copy, _ = compiled(copy_of, params)
    common = {
        "network": name,
        "dtype": dtype,
        "parameters": sum(leaf.size for leaf in workload.leaves),
        "bytes": sum(leaf.nbytes for leaf in workload.leaves),
        "copy_bandwidth": bandwidth(options.repeats),
    }
    out = []
    for groups, spec in (("default", workload.spec), ("residual", workload.residual)):
        call = equalizer(workload, spec)
        run, seconds = compiled(call, params)
        donating, _ = compiled(call, params, donate_argnums=0)
        turns = {"equalize": partial(run, params), "copy": partial(copy, params)}
        took = timed(turns, options.repeats)
        scales = jax.vmap(partial(fc.solve, spec=spec))(params) if workload.checkpoints else None
        scales = fc.solve(params, spec) if scales is None else scales
        out.append(
            common
            | {
                "groups": groups,
                "moving": sum(not group.held for group in spec.groups),
                "sweeps": int(jnp.max(scales.sweeps)),
                "residual": float(jnp.max(scales.residual)),
                "compile_seconds": seconds,
                "seconds": took["equalize"],
                "copy_seconds": took["copy"],
                "ratio_to_copy": took["equalize"] / took["copy"],
                "share_of_bandwidth": 2
                * common["bytes"]
                / took["equalize"]
                / common["copy_bandwidth"],
                "extra_memory": extra_memory(donating) / common["bytes"],
            }
        )
    return out


def elsewhere(name: str, dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, name, "--dtypes", dtype, "--here"]
    command += ["--layers", str(options.layers), "--repeats", str(options.repeats)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="`equalize` beside a copy of the same tree")
    parser.add_argument("names", nargs="*", default=list(workloads(0)), metavar="NAME")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--layers", type=int, default=4, help="of the LLaMA-like networks")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, default=RESULTS / f"speed-{slug()}.json")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        (name,), (dtype,) = options.names, options.dtypes
        print(json.dumps(measure(name, dtype, options)))
        return
    results: list[dict[str, Any]] = []
    for name in options.names:
        for dtype in options.dtypes:
            results += elsewhere(name, dtype, options)
            text = json.dumps(machine() | {"results": results}, indent=1)
            options.json.write_text(text + "\n")  # each time: a run takes long
            for entry in results[-2:]:
                shown = ("groups", "sweeps", "compile_seconds", "seconds", "ratio_to_copy")
                print(
                    name,
                    dtype,
                    *(
                        f"{key} {entry[key]:.4g}"
                        if isinstance(entry[key], float)
                        else f"{key} {entry[key]}"
                        for key in shown
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
