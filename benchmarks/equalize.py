"""Time of `equalize` on EfficientNet-Lite0, beside NumPy and beside a plain copy of the same tree.

    python benchmarks/equalize.py [--json PATH] [--repeats N]

All pairs, converged to 1e-3, warm: within each repeat the three take turns, so that ratios hold
when the machine's speed drifts, and the first call of a turn, which finds the caches full of
another's data, is not counted. NumPy does the same job: ranges reduced once, pairs in turn until
no scale moves by more than 1e-3, each leaf written once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxcle as fc
from flaxcle.paths import named_leaves

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "fashion_mnist"))

from imagenet import imagenet_variables
from lite0 import PAIRS, Lite0

TOLERANCE = 1e-3
CALLS = 5


def folded_lite0() -> Any:
    """Lite0 with its ImageNet weights and folded norms."""
    variables = jax.tree.map(jnp.asarray, imagenet_variables())
    image = jax.ShapeDtypeStruct((1, 49, 49, 3), jnp.float32)
    return fc.fold_batch_norm(Lite0().apply, variables, image)


def numpy_equalize(leaves: dict[str, np.ndarray], spec: fc.Spec) -> dict[str, np.ndarray]:
    """The same balance in NumPy: one scale vector a group, pairs in turn."""
    kernels = {p: np.abs(v) for p, v in leaves.items() if v.ndim > 1}
    cores = {p: v.max(axis=(0, 1)) if v.ndim == 4 else v for p, v in kernels.items()}
    rows = {g.name: [s for s in g.sites if s.path in cores] for g in spec.groups}
    scales = {g.name: np.ones(g.size, np.float32) for g in spec.groups}
    owners: dict[str, list[tuple[str, Any]]] = {}
    for name, sites in rows.items():
        for site in sites:
            owners.setdefault(site.path, []).append((name, site))

    def ranges(site: Any) -> np.ndarray:
        core = cores[site.path]
        for name, other in owners[site.path]:
            core = core * _along(scales[name] ** float(other.power), core.ndim, other.axes[0])
        rest = tuple(k for k in range(core.ndim) if k != site.axes[0] % core.ndim)
        return core.max(axis=rest)

    worst = np.inf
    while worst > TOLERANCE:
        worst = 0.0
        for name, sites in rows.items():
            made = next(ranges(s) for s in sites if s.power > 0)
            read = next(ranges(s) for s in sites if s.power < 0)
            alive = (made > 0) & (read > 0) & (made * read > 2.0**-30 * (made * read).max())
            step = np.sqrt(np.divide(read, made, out=np.ones_like(made), where=alive))
            scales[name] = scales[name] * np.where(alive, step, 1)
            worst = max(worst, float(np.abs(step[alive] - 1).max()))
    out = dict(leaves)
    for group in spec.groups:
        for site in group.sites:
            factor = scales[group.name] ** float(site.power)
            out[site.path] = out[site.path] * _along(factor, out[site.path].ndim, site.axes[0])
    return out


def _along(values: np.ndarray, rank: int, axis: int) -> np.ndarray:
    return values.reshape([-1 if k == axis % rank else 1 for k in range(rank)])


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, a few calls in turn."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            jax.block_until_ready(run())
            for _ in range(CALLS):
                start = time.perf_counter()
                jax.block_until_ready(run())
                samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="equalize on Lite0, NumPy, a plain copy")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=11)
    options = parser.parse_args()
    variables = folded_lite0()
    spec = fc.Spec.from_pairs(PAIRS, variables)
    host = {path: np.asarray(leaf) for path, leaf in named_leaves(variables).items()}
    equalize = jax.jit(fc.equalize, static_argnums=1)
    copy = jax.jit(lambda tree: jax.tree.map(lambda x: x + 0, tree))
    start = time.perf_counter()
    jax.block_until_ready((equalize(variables, spec), copy(variables)))
    compiled = time.perf_counter() - start
    runs = {
        "equalize": lambda: equalize(variables, spec),
        "copy": lambda: copy(variables),
        "numpy": lambda: numpy_equalize(host, spec),
    }
    medians = timed(runs, options.repeats)
    scales = fc.solve(variables, spec)
    result = {
        "network": "EfficientNet-Lite0",
        "device": f"{jax.devices()[0].device_kind}, {platform.machine()}, {os.cpu_count()} cores",
        "versions": {
            "jax": jax.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "parameters": sum(leaf.size for leaf in host.values()),
        "groups": len(spec.groups),
        "sweeps": int(scales.sweeps),
        "residual": float(scales.residual),
        "compile_seconds": compiled,
        "milliseconds": medians,
        "ratio_to_copy": medians["equalize"] / medians["copy"],
        "ratio_to_numpy": medians["equalize"] / medians["numpy"],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
