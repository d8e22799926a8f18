"""Kills `flaxcle equalize` at random moments, and keeps what it left.

Run as a script with a folder that holds `spec.json` and checkpoints: it imports once and forks for
each trial, before JAX has started anything that a fork would break. The child equalizes and undoes
in place, again and again; half of the kills fall into its first run, half into the later ones.
Each trial has a copy of its own in `killed/NUMBER-NAME`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import jax
import orbax.checkpoint
import rich.progress
import safetensors.numpy

from flaxcle.cli import main

LOADED_FOR_ALL_CHILDREN = (orbax.checkpoint, rich.progress, safetensors.numpy)


def run_forever(name: str, ready: int) -> None:
    """Equalizes and undoes; reports after the first round."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    options = ["--spec", "../../spec.json", "--power-of-two"]
    while True:
        for words in (options, ["--undo"]):
            if main(["equalize", name, name, *words, "--force"]):
                os._exit(1)
        os.write(ready, b".")


def killed(name: str, delay: float, after_first: bool) -> float:
    """Starts, waits, kills; returns how long the first round took, if it was waited for."""
    start, (read, write) = time.perf_counter(), os.pipe()
    child = os.fork()
    if not child:
        try:
            run_forever(name, write)
        finally:
            os._exit(1)
    os.close(write)
    if after_first:
        os.read(read, 1)
    first = time.perf_counter() - start
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(read)
    assert os.WIFSIGNALED(status), "the command failed by itself"
    return first


def in_copy(here: Path, name: str, number: int) -> None:
    """Goes to a new folder with a copy of a checkpoint."""
    folder = here / "killed" / f"{number}-{name}"
    folder.mkdir(parents=True)
    whole = here / name
    (shutil.copytree if whole.is_dir() else shutil.copyfile)(whole, folder / name)
    os.chdir(folder)


def trials(here: Path, name: str, count: int) -> None:
    """Kills `count` times, in a later round and in the first by turns."""
    in_copy(here, name, 0)
    first = killed(name, random.uniform(0, 0.3), True)
    for number in range(1, count):
        in_copy(here, name, number)
        after_first = number % 2 == 0
        killed(name, random.uniform(0, 0.3 if after_first else first), after_first)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    random.seed(int(sys.argv[2]))
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    trials(folder, "model.safetensors", 8)
    trials(folder, "model", 6)
