"""Epochs of a training with a checkpoint after each.

Invariant: what an epoch does depends on its number and on the settings alone, so that a training
that was stopped ends where it would have ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rich import print

from . import storage


class State(NamedTuple):
    """What a step changes."""

    variables: Any
    optimizer: Any


def train(
    name: str,
    settings: Any,
    start: State,
    run_epoch: Callable[[State, int], State],
    report: Callable[[Any], str],
) -> None:
    """Goes on from the last checkpoint, says how well each epoch did, and writes the weights."""
    path = storage.checkpoint_path(name, settings)
    state, done = storage.load_checkpoint(path, start)
    for epoch in range(done, settings.epochs):
        state = run_epoch(state, epoch)
        storage.save_checkpoint(path, state, epoch + 1)
        print(f"{name}, epoch {epoch + 1}: {report(state.variables)}")
    storage.save_weights(name, state.variables)
    print(f"{name}, weights as stored: {report(storage.load_weights(name))}")
