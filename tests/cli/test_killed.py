"""A killed `flaxcle equalize` leaves a whole checkpoint: the one before, or the one after."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import flaxcle as fc

SERVER = Path(__file__).with_name("kill_server.py")
SHAPES = {"a": {"kernel": (64, 96), "bias": (96,)}, "b": {"kernel": (96, 32)}}


def is_shape(node):
    return isinstance(node, tuple)


def same(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_a_killed_equalize_leaves_the_checkpoint_whole(tmp_path):
    draw = np.random.default_rng(0).normal
    ramp = 2.0 ** (np.arange(96) % 7)
    params = jax.tree.map(lambda s: draw(size=s).astype(np.float32), SHAPES, is_leaf=is_shape)
    params["a"]["kernel"] *= ramp.astype(np.float32)
    spec = fc.Spec.from_pairs([("a", "b")], params)
    after = fc.equalize(params, spec, power_of_two=True)
    assert not same(params, after)
    (tmp_path / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    for name in ("model", "model.safetensors"):
        fc.save_checkpoint(tmp_path / name, params)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = [sys.executable, SERVER, tmp_path, "2026"]
    subprocess.run(words, check=True, env=environment, timeout=300)
    kept = sorted((tmp_path / "killed").iterdir())
    assert len(kept) == 14
    for folder in kept:
        found = fc.load_checkpoint(folder / folder.name.partition("-")[2])
        assert same(found.params, params if found.scales is None else after), folder
