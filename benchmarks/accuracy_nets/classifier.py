"""Training of an image classifier on Fashion-MNIST: SGD with momentum, flips and small shifts.

A module is a class with one attribute, `train`. Invariant: all randomness is that of the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from idx import read_split

from .fashion import as_inputs
from .training import State, train

TRAINING_IMAGES = 60_000
MAX_SHIFT = 2
TEST_BATCH = 500


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome."""

    epochs: int
    batch: int = 128
    rate: float = 0.15
    momentum: float = 0.9
    decay: float = 4e-5
    seed: int = 0

    @property
    def steps(self) -> int:
        """In an epoch."""
        return TRAINING_IMAGES // self.batch

    def optimizer(self) -> optax.GradientTransformation:
        """The rate rises for half an epoch, then falls to 0."""
        total = self.steps * self.epochs
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, self.steps // 2, total)
        descent = optax.sgd(rate, self.momentum, nesterov=True)
        return optax.chain(optax.add_decayed_weights(self.decay), descent)


def augment(images: jax.Array, key: jax.Array) -> jax.Array:
    """Each image (28, 28) is mirrored or not, and shifted by up to `MAX_SHIFT` on either axis."""
    flip_key, shift_key = jax.random.split(key)
    mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1))
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    starts = jax.random.randint(shift_key, (len(images), 2), 0, 2 * MAX_SHIFT + 1)
    margin = (MAX_SHIFT, MAX_SHIFT)
    padded = jnp.pad(images, ((0, 0), margin, margin))
    cut = partial(jax.lax.dynamic_slice, slice_sizes=images.shape[1:])
    return jax.vmap(cut)(padded, starts)


def make_step(
    module: nn.Module, optimizer: optax.GradientTransformation
) -> Callable[[State, jax.Array, jax.Array, jax.Array], State]:
    """One compiled step on a batch of uint8 images."""

    def loss(params: Any, stats: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        variables = {"params": params, "batch_stats": stats}
        logits, updated = module.apply(variables, x, mutable=["batch_stats"])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return entropy.mean(), updated["batch_stats"]

    @jax.jit
    def step(state: State, images: jax.Array, labels: jax.Array, key: jax.Array) -> State:
        params, stats = state.variables["params"], state.variables["batch_stats"]
        x = as_inputs(augment(images, key))
        grads, stats = jax.grad(loss, has_aux=True)(params, stats, x, labels)
        updates, optimizer_state = optimizer.update(grads, state.optimizer, params)
        params = optax.apply_updates(params, updates)
        return State({"params": params, "batch_stats": stats}, optimizer_state)

    return step


def accuracy(module: nn.Module, variables: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Percent of the images."""
    predict = jax.jit(lambda v, x: module.apply(v, as_inputs(x)).argmax(-1))
    batches = np.split(images, len(images) // TEST_BATCH)
    return 100 * float(np.mean(np.concatenate([predict(variables, x) for x in batches]) == labels))


def run_epoch(
    step: Callable[[State, np.ndarray, np.ndarray, jax.Array], State],
    settings: Settings,
    state: State,
    epoch: int,
) -> State:
    """Each training image once, shuffled; a rest smaller than a batch is left out."""
    images, labels = read_split("train")
    order = np.random.default_rng((settings.seed, epoch)).permutation(len(images))
    key = jax.random.fold_in(jax.random.key(settings.seed), epoch)
    keys = jax.random.split(key, settings.steps)
    for number in track(range(settings.steps), f"epoch {epoch + 1} of {settings.epochs}"):
        rows = order[number * settings.batch :][: settings.batch]
        state = step(state, images[rows], labels[rows].astype(np.int32), keys[number])
    return state


def train_classifier(name: str, module: type[nn.Module], settings: Settings) -> None:
    """Trains and writes the weights, printing the test accuracy after each epoch."""
    images, labels = read_split("t10k")
    optimizer = settings.optimizer()
    variables = module().init(jax.random.key(settings.seed), as_inputs(images[:1]))
    train(
        name,
        settings,
        State(variables, optimizer.init(variables["params"])),
        partial(run_epoch, make_step(module(train=True), optimizer), settings),
        lambda v: f"{accuracy(module(), v, images, labels):.2f} % of the test images",
    )
