"""Quantization-aware training that starts from a collapsed network, and from the equalized one.

    python examples/qat.py [--quick] [--seeds 0 1] [--out FOLDER]

MobileNetV2 (width 0.35, Fashion-MNIST) with 4-bit weights and 8-bit activations, one scale for
each tensor, which leaves it no better than chance. The float network teaches: the loss is the
cross-entropy against its probabilities, so that no labels are used. Both starts are the same
function with the same data, order and optimizer; they differ in the scales of the channels.

Prints the test accuracy before training and after each epoch; writes them as JSON, and a picture,
to FOLDER. Invariant: no test image is used for anything but these curves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.ticker import MaxNLocator

import flaxcle as fc

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from accuracy_nets.fashion import as_inputs, calibration_batches
from accuracy_nets.mobilenet_v2 import MobileNetV2
from accuracy_nets.storage import load_weights

from build_data import DATA
from idx import read_split

TRAINED = ("kernel", "bias")  # the norms are folded, and stay the identity
TEST_BATCH = 100


class Settings(NamedTuple):
    """All that decides the outcome, but for the seed."""

    weight_bits: int
    act_bits: int
    epochs: int
    images: int
    test_images: int
    batch: int
    calibration_batches: int
    rate: float
    momentum: float

    @property
    def config(self) -> fc.QuantConfig:
        return fc.QuantConfig(
            weight_bits=self.weight_bits, act_bits=self.act_bits, momentum=self.momentum
        )


FULL = Settings(
    weight_bits=4,
    act_bits=8,
    epochs=5,
    images=1600,
    test_images=2000,
    batch=32,
    calibration_batches=8,
    rate=1e-3,
    momentum=0.95,
)
QUICK = FULL._replace(epochs=1, images=64, test_images=100, calibration_batches=2)


class State(NamedTuple):
    """What a step changes."""

    params: Any
    calibration: fc.Calibration
    optimizer: Any


class Data(NamedTuple):
    """Images as bytes (n, 28, 28); `teacher` holds float logits for each training image."""

    train: np.ndarray
    teacher: np.ndarray
    test: np.ndarray
    labels: np.ndarray


def training_images(settings: Settings, quick: bool) -> np.ndarray:
    """The first of the training set; of the calibration images, which come along, when quick."""
    images = np.load(DATA)["calibration_images"] if quick else read_split("train")[0]
    return images[: settings.images]


def outputs(fn: Callable[[Any], Any], images: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([fn(as_inputs(x)) for x in np.split(images, len(images) // size)])


def starts(x: jax.Array) -> tuple[Callable[..., Any], dict[str, Any]]:
    """One function, and its folded params before and after equalization."""
    fn, variables = MobileNetV2().apply, load_weights("mobilenet_v2")
    folded = fc.fold_batch_norm(fn, variables, x)
    fn, params = fc.expose_clips(fn, folded, x)
    plain = fc.prune_dead_channels(fn, params, x)
    return fn, {"plain": plain, "equalized": fc.equalize(plain, fc.find_spec(fn, plain, x))}


def make_optimizer(settings: Settings, params: Any) -> optax.GradientTransformation:
    """Adam with a falling rate, on kernels and biases."""

    def label(path: Any, _: Any) -> str:
        return "trained" if path[-1].key in TRAINED else "fixed"

    steps = settings.epochs * (settings.images // settings.batch)
    adam = optax.adam(optax.cosine_decay_schedule(settings.rate, steps))
    labels = jax.tree.map_with_path(label, params)
    return optax.partition({"trained": adam, "fixed": optax.set_to_zero()}, labels)


def make_step(
    fn: Callable[..., Any], config: fc.QuantConfig, optimizer: optax.GradientTransformation
) -> Callable[[State, jax.Array, jax.Array], State]:
    """One compiled step, in which the ranges of the activations follow the batch."""

    def loss(params: Any, calibration: fc.Calibration, x: jax.Array, teacher: jax.Array) -> Any:
        logits, calibration = fc.track_ranges(fn, config, calibration)(params, x)
        wanted = jax.nn.softmax(teacher)
        return optax.softmax_cross_entropy(logits, wanted).mean(), calibration

    @jax.jit
    def step(state: State, x: jax.Array, teacher: jax.Array) -> State:
        grads, calibration = jax.grad(loss, has_aux=True)(
            state.params, state.calibration, x, teacher
        )
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), calibration, optimizer_state)

    return step


def make_accuracy(
    fn: Callable[..., Any], config: fc.QuantConfig, data: Data
) -> Callable[[State], float]:
    """Percent of the test images that the quantized network gets right."""

    @jax.jit
    def logits(state: State, x: jax.Array) -> jax.Array:
        return fc.fake_quant(fn, config, state.calibration)(state.params, x)

    def accuracy(state: State) -> float:
        found = outputs(partial(logits, state), data.test, TEST_BATCH).argmax(-1)
        return 100 * float(np.mean(found == data.labels))

    return accuracy


def curve(
    step: Callable[..., State],
    accuracy: Callable[[State], float],
    state: State,
    data: Data,
    settings: Settings,
    seed: int,
) -> Iterator[float]:
    """Test accuracy before training and after each epoch."""
    yield accuracy(state)
    for epoch in range(settings.epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(data.train))
        for rows in np.split(order, len(order) // settings.batch):
            state = step(state, as_inputs(data.train[rows]), jnp.asarray(data.teacher[rows]))
        yield accuracy(state)


def read(settings: Settings, quick: bool) -> tuple[Data, float]:
    """The data, and the test accuracy of the float network."""
    run = jax.jit(partial(MobileNetV2().apply, load_weights("mobilenet_v2")))
    images, stored = training_images(settings, quick), np.load(DATA)
    test, labels = (stored[k][: settings.test_images] for k in ("test_images", "test_labels"))
    found = outputs(run, test, TEST_BATCH).argmax(-1)
    data = Data(images, outputs(run, images, settings.batch), test, labels)
    return data, 100 * float(np.mean(found == labels))


def draw(results: dict[str, Any], path: Path) -> None:
    """The curves of all seeds, one colour for each start."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    colors = {"plain": "#b04a2f", "equalized": "#2f6fb0"}
    axes.axhline(results["float"], color="0.5", linestyle=":", label="float")
    for name, curves in results["curves"].items():
        for number, values in enumerate(curves.values()):
            label = f"{name} start" if number == 0 else None
            axes.plot(values, color=colors[name], marker="o", markersize=3, label=label)
    bits = "W{weight_bits}A{act_bits}".format(**results["settings"])
    passes = f"passes over {results['settings']['images']} training images"
    axes.set(xlabel=passes, ylabel="test accuracy, %", ylim=(0, 100))
    axes.set_title(f"MobileNetV2 on Fashion-MNIST, {bits} per tensor", fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="center right", frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def run(settings: Settings, seeds: list[int], out: Path, quick: bool = False) -> dict[str, Any]:
    """All curves; JSON and picture are written anew after each of them."""
    out.mkdir(parents=True, exist_ok=True)
    data, reference = read(settings, quick)
    batches = calibration_batches(as_inputs)[: settings.calibration_batches]
    fn, networks = starts(batches[0])
    optimizer = make_optimizer(settings, networks["plain"])
    step = make_step(fn, settings.config, optimizer)
    accuracy = make_accuracy(fn, settings.config, data)
    curves: dict[str, Any] = {name: {} for name in networks}
    results = {"settings": settings._asdict(), "float": reference, "curves": curves}
    for seed in seeds:
        for name, params in networks.items():
            ranges = fc.calibrate(fn, params, batches, settings.config)
            start = State(params, ranges, optimizer.init(params))
            values = curves[name].setdefault(str(seed), [])
            for value in curve(step, accuracy, start, data, settings, seed):
                values.append(round(value, 2))
                print(f"seed {seed}, {name}, epoch {len(values) - 1}: {value:.2f} %", flush=True)
            (out / "qat.json").write_text(json.dumps(results, indent=1) + "\n")
            draw(results, out / "qat.png")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="a few steps on images that come along"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the order of images")
    parser.add_argument("--rate", type=float, default=FULL.rate, help="the first learning rate")
    parser.add_argument("--out", type=Path, default=Path("build/qat"))
    chosen = parser.parse_args()
    settings = (QUICK if chosen.quick else FULL)._replace(rate=chosen.rate)
    began = time.monotonic()
    results = run(settings, chosen.seeds, chosen.out, chosen.quick)
    print(f"float: {results['float']:.2f} %\n{time.monotonic() - began:.0f} s, {chosen.out}")


if __name__ == "__main__":
    main()
