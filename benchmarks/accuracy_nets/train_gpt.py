"""Trains the GPT with AdamW and writes weights/gpt.npz.

python -m benchmarks.accuracy_nets.train_gpt
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from rich.progress import track

from .gpt import GPT, LENGTH, test_batches
from .text import training_text, windows
from .training import State, train


@dataclass(frozen=True)
class Settings:
    """All that decides the outcome; an epoch is what lies between two checkpoints."""

    epochs: int = 6
    steps: int = 250
    batch: int = 32
    rate: float = 3e-3
    warm_up: int = 100
    decay: float = 0.05
    clip: float = 1.0
    seed: int = 0

    def optimizer(self) -> optax.GradientTransformation:
        """The rate rises for `warm_up` steps, then falls to 0."""
        total = self.steps * self.epochs
        rate = optax.warmup_cosine_decay_schedule(0.0, self.rate, self.warm_up, total)
        adam = optax.adamw(rate, b2=0.99, weight_decay=self.decay)
        return optax.chain(optax.clip_by_global_norm(self.clip), adam)


def entropy(variables: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean negative log-likelihood of the targets."""
    logits = GPT().apply(variables, inputs)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def make_step(
    optimizer: optax.GradientTransformation,
) -> Callable[[State, np.ndarray, np.ndarray], State]:
    """One compiled step."""

    @jax.jit
    def step(state: State, inputs: jax.Array, targets: jax.Array) -> State:
        grads = jax.grad(entropy)(state.variables, inputs, targets)
        updates, memory = optimizer.update(grads, state.optimizer, state.variables)
        return State(optax.apply_updates(state.variables, updates), memory)

    return step


def perplexity(variables: Any) -> float:
    """Of the held-out text, for each character."""
    measure = jax.jit(entropy)
    values = [measure(variables, x, y) for x, y in zip(*test_batches(), strict=True)]
    return float(np.exp(np.mean(values)))


def run_epoch(
    step: Callable[[State, np.ndarray, np.ndarray], State],
    settings: Settings,
    state: State,
    epoch: int,
) -> State:
    """Windows from anywhere in the training text."""
    text, rng = training_text(), np.random.default_rng((settings.seed, epoch))
    for _ in track(range(settings.steps), f"epoch {epoch + 1} of {settings.epochs}"):
        starts = rng.integers(len(text) - LENGTH, size=settings.batch)
        state = step(state, *windows(text, starts, LENGTH))
    return state


def main(settings: Settings) -> None:
    optimizer = settings.optimizer()
    variables = GPT().init(jax.random.key(settings.seed), np.zeros((1, LENGTH), np.int32))
    train(
        "gpt",
        settings,
        State(variables, optimizer.init(variables)),
        partial(run_epoch, make_step(optimizer), settings),
        lambda v: f"perplexity {perplexity(v):.3f} on the held-out text",
    )


if __name__ == "__main__":
    main(Settings())
