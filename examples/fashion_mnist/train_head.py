"""Trains the linear softmax head on Lite0's pooled features and writes data/head.npz.

    python examples/fashion_mnist/train_head.py [FOLDER]

minimise over W, b:   mean cross-entropy(F W + b, y) + decay * |W|**2      (full batch, L-BFGS)

Only training images are read: 16,000 drawn with seed 1, of which the last 4,000 choose the decay;
the head that is stored is then fitted on all 16,000. The backbone stays as it is.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from idx import DEBIAN, read_split
from imagenet import imagenet_variables
from lite0 import HEAD_CHANNELS, Lite0
from preprocess import preprocess

HEAD = Path(__file__).parent / "data" / "head.npz"
CLASSES = 10
IMAGES, HELD_OUT = 16_000, 4_000
SEED = 1
BATCH = 50
DECAYS = (3e-4, 1e-3, 3e-3, 1e-2)
STEPS = 300


class Head(NamedTuple):
    """Logits are `features @ kernel + bias`."""

    kernel: jax.Array
    bias: jax.Array


def pooled_features(images: np.ndarray) -> np.ndarray:
    """Lite0's pooled features (n, 1280): the logits of an identity classifier."""
    variables = imagenet_variables()
    variables["params"]["classifier"] = {
        "kernel": np.eye(HEAD_CHANNELS, dtype=np.float32),
        "bias": np.zeros(HEAD_CHANNELS, np.float32),
    }
    features = jax.jit(Lite0(classes=HEAD_CHANNELS).apply)
    batches = np.split(images, len(images) // BATCH)
    parts = [features(variables, preprocess(batch)) for batch in track(batches, "features")]
    return np.concatenate(parts)


@partial(jax.jit, static_argnames="steps")
def fit(features: jax.Array, labels: jax.Array, decay: Any, steps: int = STEPS) -> Head:
    """The regularised softmax regression; convex, so that the start does not matter."""

    def loss(head: Head) -> jax.Array:
        logits = features @ head.kernel + head.bias[None]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy.mean() + decay * jnp.sum(head.kernel**2)

    solver = optax.lbfgs()

    def step(_: int, state: tuple[Head, Any]) -> tuple[Head, Any]:
        head, memory = state
        value, grad = optax.value_and_grad_from_state(loss)(head, state=memory)
        update, memory = solver.update(grad, memory, head, value=value, grad=grad, value_fn=loss)
        return jax.tree.map(jnp.add, head, update), memory

    start = Head(jnp.zeros((features.shape[1], CLASSES)), jnp.zeros(CLASSES))
    return jax.lax.fori_loop(0, steps, step, (start, solver.init(start)))[0]


def accuracy(head: Head, features: np.ndarray, labels: np.ndarray) -> float:
    """Percent."""
    return 100 * float(np.mean(np.argmax(features @ head.kernel + head.bias[None], -1) == labels))


def choose_decay(features: np.ndarray, labels: np.ndarray) -> float:
    """The decay with the best accuracy on the last `HELD_OUT` rows."""
    scores = {}
    for decay in DECAYS:
        head = fit(features[:-HELD_OUT], labels[:-HELD_OUT], decay)
        scores[decay] = accuracy(head, features[-HELD_OUT:], labels[-HELD_OUT:])
        print(f"decay {decay:.0e}: {scores[decay]:.2f} % on held-out training images")
    return max(scores, key=lambda decay: scores[decay])


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains the head on Lite0's features.")
    parser.add_argument("folder", nargs="?", type=Path, default=DEBIAN, help="the four .gz files")
    images, labels = read_split("train", parser.parse_args().folder)
    chosen = np.random.default_rng(SEED).permutation(len(images))[:IMAGES]
    features, labels = pooled_features(images[chosen]), labels[chosen].astype(np.int32)
    head = fit(features, labels, choose_decay(features, labels))
    np.savez(HEAD, kernel=head.kernel, bias=head.bias)
    print(f"{HEAD}: {accuracy(head, features, labels):.2f} % on the training images")


if __name__ == "__main__":
    main()
