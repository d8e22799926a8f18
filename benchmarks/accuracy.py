"""What int8, int6 and int4 cost each network of `accuracy_nets`, and what the recipe gives back.

    python benchmarks/accuracy.py [--networks NAME ...] [--bits W8A8 ...] [--per tensor channel]
        [--images N] [--baseline-images N] [--stress] [--data-free] [--json PATH]

For each network, bit widths and granularity: the float network, the folded network as a converter
quantizes it, the same with corrected biases, the equalized network with corrected biases, and
`quantize_recipe`, whose own table (each stage, judged on calibration data) is kept beside the
numbers. Test data are seen by `evaluate` alone. Results are merged into the file, one entry for
each setting, so that a run may do a part; `accuracy_table.py` prints them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import flaxcle as fc

sys.path.insert(0, str(Path(__file__).parent))

from accuracy_nets import NAMES, Subject, load

BITS = {"W8A8": (8, 8), "W6A6": (6, 6), "W4A8": (4, 8)}
STRESS_SEED, STRESS_REACH = 0, 5.0  # log2: the scales of a group differ by up to 2**10
DATA = Path(__file__).parent / "results" / "accuracy.json"


class Bench:
    """A network, its float outputs and what is measured against them."""

    def __init__(self, subject: Subject, images: int | None) -> None:
        self.subject = subject
        size = len(subject.test[0])
        self.count = min(images or 10**9, size * len(subject.test)) // size

    @cached_property
    def float_outputs(self) -> list[np.ndarray]:
        run = jax.jit(self.subject.fn)
        batches = self.subject.test[: self.count]
        return [np.asarray(run(self.subject.variables, x)) for x in batches]

    @cached_property
    def folded(self) -> Any:
        fn, variables = self.subject.fn, self.subject.variables
        try:
            return fc.fold_batch_norm(fn, variables, self.subject.inputs)
        except fc.errors.FoldError:  # there is no norm in it
            return variables

    def evaluate(self, run: Callable[..., Any], params: Any, images: int | None) -> dict[str, Any]:
        """Test metrics of a function on the first `images` test inputs."""
        size = len(self.subject.test[0])
        count = min(self.count, images // size if images else self.count)
        pairs = zip(self.subject.test[:count], self.float_outputs, strict=False)
        seen = [(clean, np.asarray(run(params, x))) for x, clean in pairs]
        clean, noisy = (np.concatenate(side) for side in zip(*seen, strict=True))
        chosen, wanted = noisy.argmax(-1), clean.argmax(-1)
        out = {
            "images": len(clean),
            "sqnr_db": fc.sqnr(clean, noisy),
            "agreement": 100 * float(np.mean(chosen == wanted)),
        }
        if self.subject.labels is None:
            return out
        labels = np.concatenate([np.asarray(y) for y in self.subject.labels[:count]])
        if self.subject.metric == "perplexity":
            reference, own = perplexity(clean, labels), perplexity(noisy, labels)
            return out | {"perplexity": own, "float": reference, "ratio": own / reference}
        right, was_right = chosen == labels, wanted == labels
        loss = 100 * (was_right.astype(float) - right)
        return out | {
            "accuracy": 100 * float(right.mean()),
            "float": 100 * float(was_right.mean()),
            "loss": float(loss.mean()),
            "standard_error": float(loss.std() / np.sqrt(len(loss))),
        }

    def quantized(self, fn: Any, params: Any, config: fc.QuantConfig) -> Callable[..., Any]:
        ranges = fc.calibrate(fn, params, self.subject.calibration, config)
        return jax.jit(fc.fake_quant(fn, config, ranges))

    def baselines(self, config: fc.QuantConfig, images: int | None) -> dict[str, Any]:
        """The folded network, and the equalized one, as other tools make them."""
        x = self.subject.inputs
        exposed, params = fc.expose_clips(self.subject.fn, self.folded, x)
        params = fc.prune_dead_channels(exposed, params, x)
        params = fc.equalize(params, fc.find_spec(exposed, params, x))
        networks = {
            "folded": (self.subject.fn, self.folded),
            "equalized": (exposed, params),
        }
        out = {}
        for name, (fn, params) in networks.items():
            run = self.quantized(fn, params, config)
            out[name] = self.evaluate(run, params, images)
            fixed = fc.correct_bias(fn, params, self.subject.calibration, config)
            out[f"{name}, biases corrected"] = self.evaluate(run, fixed, images)
        return out

    def recipe(self, variables: Any, config: fc.QuantConfig, free: bool = False) -> dict[str, Any]:
        """The recipe on all test images, and its own table of stages."""
        start = time.perf_counter()
        like = jax.ShapeDtypeStruct(self.subject.inputs.shape, self.subject.inputs.dtype)
        options = {"inputs": (like,)} if free else {}
        data = None if free else self.subject.calibration
        made = fc.quantize_recipe(self.subject.fn, variables, data, config, **options)
        seconds = time.perf_counter() - start
        stages = [dict(row) for row in made.stages]
        return self.served(made, None) | {"seconds": seconds, "stages": stages}

    def served(self, made: fc.Recipe, images: int | None) -> dict[str, Any]:
        """Test metrics of a recipe."""
        run = jax.jit(fc.fake_quant(made.fn, made.config, made.calibration))
        return self.evaluate(run, made.params, images)


def perplexity(logits: np.ndarray, labels: np.ndarray) -> float:
    """exp of the mean negative log likelihood of each token."""
    total = jax.nn.logsumexp(jnp.asarray(logits), -1)
    own = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return float(np.exp(np.mean(np.asarray(total, np.float64) - own)))


def stressed(bench: Bench) -> Any:
    """The folded network with random scales in every group, which keep its function."""
    fn, params = bench.subject.fn, bench.folded
    spec = fc.find_spec(fn, params, bench.subject.inputs)
    rng = np.random.default_rng(STRESS_SEED)
    drawn = {
        group.name: jnp.asarray(rng.uniform(-STRESS_REACH, STRESS_REACH, group.shape), jnp.float32)
        for group in spec.groups
    }
    return fc.apply_scales(params, fc.Scales(drawn), spec)


def machine() -> dict[str, Any]:
    device = jax.devices()[0]
    name = device.device_kind if device.platform != "cpu" else f"{os.cpu_count()} CPU cores"
    return {"device": name, "jax": jax.__version__, "python": platform.python_version()}


def merge(path: Path, key: dict[str, Any], entry: dict[str, Any]) -> None:
    """Puts an entry in the place of the one with the same key."""
    known = json.loads(path.read_text()) if path.exists() else []
    kept = [old for old in known if any(old[name] != value for name, value in key.items())]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([*kept, key | entry], indent=1) + "\n")


def config_of(bits: str, per: str) -> fc.QuantConfig:
    weights, acts = BITS[bits]
    return fc.QuantConfig(weight_bits=weights, act_bits=acts, weight_granularity=f"per_{per}")


def measure(bench: Bench, bits: str, per: str, arguments: argparse.Namespace) -> None:
    """One setting: baselines and the recipe."""
    config, images = config_of(bits, per), arguments.baseline_images
    key = {"network": bench.subject.name, "bits": bits, "per": per}
    seen = sum(map(len, bench.subject.calibration))
    results = bench.baselines(config, images)
    results["recipe"] = bench.recipe(bench.subject.variables, config)
    keep(arguments.json, key | {"run": "plain"}, seen, results)
    if arguments.stress:
        params = stressed(bench)
        run = bench.quantized(bench.subject.fn, params, config)
        results = {"folded": bench.evaluate(run, params, images)}
        results["recipe"] = bench.recipe(params, config)
        keep(arguments.json, key | {"run": "stressed"}, seen, results)
    if arguments.data_free:
        results = {"recipe": bench.recipe(bench.subject.variables, config, free=True)}
        keep(arguments.json, key | {"run": "data-free"}, 0, results)


def keep(path: Path, key: dict[str, Any], calibration: int, results: dict[str, Any]) -> None:
    """Into the file, and on the screen."""
    merge(path, key, machine() | {"calibration": calibration, "results": results})
    print(*key.values(), flush=True)
    for name, row in results.items():
        shown = {k: round(v, 3) for k, v in row.items() if isinstance(v, float)}
        print(f"  {name:30s}", *(f"{k} {v}" for k, v in shown.items()), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--bits", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--per", nargs="+", choices=("tensor", "channel"), default=["tensor"])
    parser.add_argument("--images", type=int, help="test inputs for the recipe; all by default")
    parser.add_argument("--baseline-images", type=int, help="test inputs for the other rows")
    parser.add_argument("--stress", action="store_true", help="also with random scales")
    parser.add_argument("--data-free", action="store_true", help="also without data")
    parser.add_argument("--json", type=Path, default=DATA)
    chosen = parser.parse_args(arguments)
    for name in chosen.networks:
        bench = Bench(load(name), chosen.images)
        for bits in chosen.bits:
            for per in chosen.per:
                measure(bench, bits, per, chosen)


if __name__ == "__main__":
    main()
