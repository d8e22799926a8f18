"""`equalize` and its rivals on the same weights, in one run, with one thread and with two.

    python benchmarks/rivals/bench.py FOLDER [--threads 1 2] [--repeats N] [--json PATH]

FOLDER holds a virtual environment for each rival, as `make bench-rivals` makes them. The tools take
turns, network by network, each in a process of its own. All results are judged by one yardstick:
the factor by which the balance would still change a scale, of which 95 % of the channels stay
below, beside what a whole group has in common; over the pairs that move by default, and with the
groups of residual sums. The rest are dead channels, which no tool treats alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from export import NETWORKS, read, write

import flaxcle as fc

sys.path.insert(0, str(Path(__file__).parents[1]))

from speed import RESULTS, machine
from workloads import Workload, workloads

HERE = Path(__file__).parent
TOOLS = {
    "run_flaxcle.py": "",
    "run_aimet_onnx.py": "aimet",
    "run_brevitas.py": "brevitas",
    "run_ppq.py": "ppq",
}


def called(python: str, script: str, network: str, data: Path, threads: int, repeats: int) -> Any:
    """What a runner prints, one dict a line."""
    command = [python, str(HERE / script), network, str(data)]
    command += ["--threads", str(threads), "--repeats", str(repeats)]
    if threads == 1:
        command = ["taskset", "-c", "0", *command]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return [{"tool": script, "error": done.stderr.strip().splitlines()[-1]}]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def imbalance(params: Any, spec: fc.Spec) -> float:
    """The factor by which the balance would still change scales; 95 % stay below it.

    What all channels of a group have in common is left out: a tensor's own scale takes it.
    """
    scales = fc.solve(params, spec)
    moves = []
    for group in spec.groups:
        alive = ~scales.kept[group.name].ravel()
        if not group.held and alive.any():
            log2 = scales.log2[group.name].ravel()[alive]
            moves.append(jnp.abs(log2 - jnp.median(log2)))
    return float(2 ** jnp.quantile(jnp.concatenate(moves), 0.95))


def left(tool: str, network: str, workload: Workload, data: Path) -> dict[str, float]:
    """The imbalance that a tool leaves, over the pairs and with the residual groups."""
    if tool.startswith("flaxcle"):
        params = read(data / f"{network}.npz", workload)
        params = fc.equalize(params, workload.spec if tool == "flaxcle" else workload.residual)
    else:
        params = read(data / f"{network}-{tool}.npz", workload)
    pairs, whole = imbalance(params, workload.spec), imbalance(params, workload.residual)
    return {"imbalance_of_pairs": pairs, "imbalance_with_residual": whole}


def measure(network: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All tools on one network."""
    workload, data = workloads(0)[network](jnp.float32), options.folder / "data"
    data.mkdir(exist_ok=True)
    write(network, workload, data)
    torch = str(options.folder / "brevitas" / "bin" / "python")
    command = [torch, str(HERE / "torch_networks.py"), network, str(data)]
    subprocess.run(command, check=True, capture_output=True)
    rows: list[dict[str, Any]] = []
    judged: dict[str, dict[str, float]] = {}  # the same for any number of threads
    for threads in options.threads:
        for script, folder in TOOLS.items():
            python = str(options.folder / folder / "bin" / "python") if folder else sys.executable
            for row in called(python, script, network, data, threads, options.repeats):
                tool = row["tool"]
                if "error" not in row and tool not in judged:
                    judged[tool] = left(tool, network, workload, data)
                rows.append({"network": network, "threads": threads} | row | judged.get(tool, {}))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="equalize and its rivals on the same weights")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS / "rivals.json")
    options = parser.parse_args()
    rows = [row for network in options.networks for row in measure(network, options)]
    options.json.write_text(json.dumps(machine() | {"results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
