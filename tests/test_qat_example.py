"""The example of quantization-aware training: its quick form, and what it may look at."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import qat


@pytest.mark.slow
def test_the_quick_form_trains_both_starts_and_draws_them(tmp_path):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        results = qat.run(qat.QUICK, [0], tmp_path, quick=True)
    plain, equalized = (results["curves"][name]["0"] for name in ("plain", "equalized"))
    assert len(plain) == len(equalized) == qat.QUICK.epochs + 1
    assert equalized[0] > plain[0] + 30
    assert results["float"] > 85
    assert json.loads((tmp_path / "qat.json").read_text()) == results
    assert (tmp_path / "qat.png").read_bytes().startswith(b"\x89PNG")


def test_quick_trains_on_no_test_image():
    test = {image.tobytes() for image in np.load(qat.DATA)["test_images"]}
    images = qat.training_images(qat.QUICK, quick=True)
    assert len(images) == qat.QUICK.images
    assert not test & {image.tobytes() for image in images}


def test_only_kernels_and_biases_are_trained():
    params = {"params": {"a": {"kernel": np.ones(2), "scale": np.ones(2)}}, "clip": np.ones(2)}
    optimizer = qat.make_optimizer(qat.QUICK, params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(params, optimizer.init(params), params)
    moved = jax.tree.map(lambda leaf: bool(np.any(leaf)), updates)
    assert moved == {"params": {"a": {"kernel": True, "scale": False}}, "clip": False}
