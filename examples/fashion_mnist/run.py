"""The demo: int8 destroys EfficientNet-Lite0, equalization and bias correction bring it back.

    python examples/fashion_mnist/run.py [--out FOLDER]

Prints accuracy, agreement with float and SQNR on 2,000 test images; writes them as JSON, two
pictures and a report to FOLDER. Invariant: no test image is used for anything but the table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

import flaxcle as fc
from build_data import DATA
from flaxcle.tables import Table
from imagenet import imagenet_variables
from lite0 import PAIRS, Lite0, layer_names
from pictures import save_pictures
from preprocess import preprocess
from train_head import CLASSES, HEAD

BATCH = 50
CALIBRATION_BATCH = 64
CORRECTION_BATCHES = 4
PROBES = 8
PICTURED = "block1a/depthwise"
PER_TENSOR = fc.QuantConfig()
PER_CHANNEL = fc.QuantConfig(weight_granularity="per_channel")

Params = Any
Function = Callable[..., Any]


class Network(NamedTuple):
    """A function with its params; int8 in `config` where there is a `calibration`."""

    fn: Function
    params: Params
    calibration: fc.Calibration | None = None
    config: fc.QuantConfig = PER_TENSOR

    def logits(self, images: np.ndarray, tick: Callable[[], None]) -> np.ndarray:
        """The logits of all images; two threads, as XLA runs a depthwise convolution in one."""

        def run(batch: np.ndarray) -> np.ndarray:
            out = _logits(self.fn, self.config, self.calibration, self.params, batch)
            tick()
            return np.asarray(out)

        with ThreadPoolExecutor(2) as pool:
            return np.concatenate(list(pool.map(run, np.split(images, len(images) // BATCH))))


@partial(jax.jit, static_argnames=("fn", "config"))
def _logits(
    fn: Function,
    config: fc.QuantConfig,
    calibration: fc.Calibration | None,
    params: Params,
    images: jax.Array,
) -> jax.Array:
    if calibration is not None:
        fn = fc.fake_quant(fn, config, calibration)
    return fn(params, preprocess(images))


def float_variables() -> Params:
    """Lite0's ImageNet backbone with the trained head."""
    variables = imagenet_variables()
    variables["params"]["classifier"] = dict(np.load(HEAD))
    return jax.tree.map(jax.numpy.asarray, variables)


def equalize(fn: Function, params: Params, x: jax.Array) -> tuple[Function, Params]:
    """The same function with equalized weights; ReLU6 is kept, with a bound for each channel."""
    fn, params = fc.expose_clips(fn, params, x)
    params = fc.prune_dead_channels(fn, params, x)
    return fn, fc.equalize(params, fc.Spec.from_pairs(PAIRS, params))


def networks(batches: list[jax.Array], stage: Callable[[str], None]) -> dict[str, Network]:
    """The rows of the table, from float to int8 per channel."""
    fn, x = Lite0(classes=CLASSES).apply, batches[0]
    stage("folding batch normalization")
    folded = fc.fold_batch_norm(fn, float_variables(), x)
    stage("equalizing")
    equal_fn, equal = equalize(fn, folded, x)
    stage("calibrating")
    ranges = fc.calibrate(fn, folded, batches, PER_TENSOR)
    equal_ranges = fc.calibrate(equal_fn, equal, batches, PER_TENSOR)
    stage("correcting biases")
    corrected = fc.correct_bias(equal_fn, equal, batches[:CORRECTION_BATCHES], PER_TENSOR)
    return {
        "float": Network(fn, folded),
        "int8 per tensor": Network(fn, folded, ranges),
        "int8 after equalization": Network(equal_fn, equal, equal_ranges),
        "int8 after equalization and bias correction": Network(equal_fn, corrected, equal_ranges),
        "int8 per channel": Network(fn, folded, ranges, PER_CHANNEL),
    }


def kernels(params: Params) -> dict[str, np.ndarray]:
    """The kernels by layer, in the order of the network."""

    def kernel(name: str) -> np.ndarray:
        module: Any = params["params"]
        for part in name.split("/"):
            module = module[part]
        return np.asarray(module["kernel"])

    return {name: kernel(name) for name in layer_names()}


def write_report(path: Path, rows: dict[str, Network], table: Table, x: list[jax.Array]) -> Path:
    """The report on equalization; layers are looked at one by one on a few images."""
    first, after, corrected = list(rows.values())[1:4]
    _, before = fc.expose_clips(first.fn, first.params, x[0])
    return fc.report(
        after.fn,
        before,
        after.params,
        x[:CORRECTION_BATCHES],
        PER_TENSOR,
        path=path,
        corrected=corrected.params,
        spec=fc.Spec.from_pairs(PAIRS, after.params),
        headline=table,
        probes=[x[0][:PROBES]],
        title="EfficientNet-Lite0 on Fashion-MNIST",
    )


def evaluate(rows: dict[str, Network], images: np.ndarray, progress: Progress) -> dict[str, Any]:
    """The logits of each network."""
    logits = {}
    for name, network in rows.items():
        task = progress.add_task(name, total=len(images) // BATCH)
        logits[name] = network.logits(images, partial(progress.advance, task))
    return logits


def as_json(table: Table, seconds: float) -> str:
    """The table's numbers; what is infinite is null, which JSON has and infinity is not."""
    rows = [{k: None if v == float("inf") else v for k, v in row.items()} for row in table]
    return json.dumps({"rows": rows, "seconds": round(seconds, 1)}, indent=1, allow_nan=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="int8 before and after equalization")
    parser.add_argument("--out", type=Path, default=Path("build/fashion_mnist"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    start, data = time.monotonic(), np.load(DATA)
    with Progress() as progress:
        task = progress.add_task("reading", total=6)
        images = preprocess(data["calibration_images"])
        batches = list(images.reshape(-1, CALIBRATION_BATCH, *images.shape[1:]))
        rows = networks(batches, lambda text: progress.update(task, advance=1, description=text))
        progress.update(task, advance=1, description="evaluating")
        logits = evaluate(rows, data["test_images"], progress)
        table = fc.compare(logits.pop("float"), logits, data["test_labels"])
        progress.update(task, description="writing the report")
        report = write_report(out / "report.html", rows, table, batches)
        progress.update(task, advance=1, description="done")
    before, after = (kernels(rows[k].params) for k in ("float", "int8 after equalization"))
    pictures = save_pictures(out, before, after, PICTURED)
    seconds = time.monotonic() - start
    (out / "numbers.json").write_text(as_json(table, seconds))
    console = Console()
    console.print(f"{table}\n\n{seconds:.0f} s", markup=False, highlight=False)
    for path in [report, out / "numbers.json", *pictures]:
        console.print(path, highlight=False)


if __name__ == "__main__":
    main()
