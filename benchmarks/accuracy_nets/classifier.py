"""Training of an image classifier on Fashion-MNIST: SGD with momentum, flips and small shifts.

A module is a class with one attribute, `train`. Invariant: the state after an epoch depends on the
settings alone, so that a training that was stopped ends where it would have ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from idx import read_split

from . import storage
from .fashion import as_inputs

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

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """`steps` is the length of an epoch; the rate rises for half of one, then falls to 0."""
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, steps // 2, steps * self.epochs)
        descent = optax.sgd(rate, self.momentum, nesterov=True)
        return optax.chain(optax.add_decayed_weights(self.decay), descent)


class State(NamedTuple):
    """What a step changes."""

    variables: Any
    optimizer: Any


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


def train(name: str, module: type[nn.Module], settings: Settings) -> None:
    """Trains, printing the test accuracy after each epoch, and writes the weights."""
    images, labels = read_split("train")
    test, labels = read_split("t10k"), labels.astype(np.int32)
    steps = len(images) // settings.batch
    optimizer = settings.optimizer(steps)
    step, root = make_step(module(train=True), optimizer), jax.random.key(settings.seed)
    variables = module(train=False).init(root, as_inputs(images[:1]))
    path = storage.checkpoint_path(name, settings)
    state, done = storage.load_checkpoint(
        path, State(variables, optimizer.init(variables["params"]))
    )
    for epoch in range(done, settings.epochs):
        order = np.random.default_rng((settings.seed, epoch)).permutation(len(images))
        keys = jax.random.split(jax.random.fold_in(root, epoch), steps)
        for number in track(range(steps), f"epoch {epoch + 1} of {settings.epochs}"):
            rows = order[number * settings.batch :][: settings.batch]
            state = step(state, images[rows], labels[rows], keys[number])
        storage.save_checkpoint(path, state, epoch + 1)
        print(f"{name}, epoch {epoch + 1}: {accuracy(module(), state.variables, *test):.2f} %")
    storage.save_weights(name, state.variables)
    stored = accuracy(module(), storage.load_weights(name), *test)
    print(f"{name}: {stored:.2f} % on the 10,000 test images with the weights as stored")
