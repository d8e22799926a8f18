"""What every rival's runner does: time its call, and store the weights that it made."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np


def arguments() -> argparse.Namespace:
    """A network, the folder of `export.py`, threads and repeats."""
    parser = argparse.ArgumentParser()
    parser.add_argument("network")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


def run(
    tool: str,
    prepare: Callable[[], Any],
    equalize: Callable[[Any], Any],
    arrays: Callable[[Any], Iterator[tuple[np.ndarray, np.ndarray]]],
    chosen: argparse.Namespace,
    warm: bool = True,
    **about: Any,
) -> None:
    """Times `equalize(prepare())`, preparation apart, and prints a line of JSON.

    Args:
        tool: whose name the files bear.
        prepare: a fresh network, as the tool takes it.
        equalize: the call that counts; returns what `arrays` reads.
        arrays: weight and bias of each layer in order.
        chosen: from `arguments`.
        warm: whether a call that does not count comes first.
        about: what else to report; values may be functions of the last result.
    """
    seconds, last = [], None
    for _ in range(chosen.repeats + warm):
        network = prepare()
        start = time.perf_counter()
        last = equalize(network)
        seconds.append(time.perf_counter() - start)
    out = {}
    for number, (weight, bias) in enumerate(arrays(last)):
        out |= {f"weight{number}": weight, f"bias{number}": bias}
    np.savez(chosen.folder / f"{chosen.network}-{tool}.npz", **out)
    more = {key: value(last) if callable(value) else value for key, value in about.items()}
    print(json.dumps({"tool": tool, "seconds": statistics.median(seconds[warm:]), **more}))
