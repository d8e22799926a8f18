"""Time and memory of `find_spec` on large networks, of which no weight is ever allocated.

    python benchmarks/discover.py [--json PATH] [NAME ...]

Each network runs in a process of its own, so that its peak memory is its own; the time includes
tracing and counts from a warm import of jax.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
from big_networks import NETWORKS


def measure(name: str) -> dict[str, Any]:
    """Runs `find_spec` once."""
    from flaxcle.discover import find_spec  # noqa: PLC0415  (after jax, whose import is not timed)
    from flaxcle.jaxpr import trace  # noqa: PLC0415

    fn, params, x = NETWORKS[name]()
    jax.eval_shape(lambda a: a + 1.0, jax.ShapeDtypeStruct((1,), jnp.float32))
    start = time.perf_counter()
    trace(fn, params, x)
    traced = time.perf_counter()
    spec = find_spec(fn, params, x)
    done = time.perf_counter()
    return {
        "name": name,
        "trace_seconds": round(traced - start, 3),
        "find_spec_seconds": round(done - traced, 3),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "groups": len(spec.groups),
        "scales": spec.scales,
        "blocked": len(spec.blocked),
    }


def main() -> None:
    """Prints a line of JSON per network."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(NETWORKS))
    parser.add_argument("--json", help="also write a list of all results to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure(*options.names)))
        return
    results = []
    for name in options.names:
        run = subprocess.run(
            [sys.executable, __file__, "--here", name], check=True, capture_output=True, text=True
        )
        print(run.stdout.strip(), flush=True)
        results.append(json.loads(run.stdout))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
