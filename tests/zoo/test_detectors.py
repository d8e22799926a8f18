"""The trained detectors see what they were trained to see; without that no other test counts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

import jax
import numpy as np
import pytest

from zoo.detectors import EXAMPLE, example

# Forehead to chin, ear to ear, by eye; top, left, bottom, right of a 512 x 512 picture.
FACE = np.array([72, 175, 178, 268]) / 512


@pytest.fixture
def optimized() -> Iterator[None]:
    """As users compile: on a single picture other roundings are worth half a decibel."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    jax.clear_caches()
    yield
    jax.config.update(name, before)
    jax.clear_caches()


@pytest.mark.parametrize(
    "name", ["tiny_face", pytest.param("ssd_mobilenetv1", marks=pytest.mark.slow)]
)
def test_finds_the_one_face(name: str) -> None:
    detectors = example()
    picture = np.load(EXAMPLE / "astronaut.npz")["picture"]
    [(box, score)] = detectors.detect(getattr(detectors, name)(), picture)
    assert detectors.intersection_over_union(box, FACE) > 0.7
    assert score > 0.95


def test_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 0.9], [2, 2, 3, 3], [5, 5, 6, 6]], float)
    kept = example().suppress(boxes, np.array([0.8, 0.9, 0.7, 0.4]))
    assert [score for _, score in kept] == [0.9, 0.7]


def test_weights_are_read_to_the_last_byte() -> None:
    detectors = example()
    for stem in ("tiny_face_detector_model", "ssd_mobilenetv1_model"):
        tensors = detectors.read_weights(stem)
        wide = tensors.get("Output/extra_dim", np.empty(0)).size  # the only tensor kept in float32
        size = sum(value.size for value in tensors.values()) + 3 * wide
        assert size == (EXAMPLE / f"{stem}.bin").stat().st_size


@pytest.mark.parametrize(
    "name", ["tiny_face", pytest.param("ssd_mobilenetv1", marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("optimized")
def test_the_box_stays_when_equalized_and_gets_better_in_int8(name: str) -> None:
    """Float: the same box to a pixel's hundredth. Int8 against float: nearer than without.

    Corrected biases are not compared with those that are not: on one picture their gain is less
    than what another processor's roundings are worth.
    """
    example()
    picture = np.load(EXAMPLE / "astronaut.npz")["picture"]
    plain, int8, equalized, int8_equalized, corrected = import_module("boxes").rows(name, picture)
    assert [row.boxes for row in (plain, int8, equalized, int8_equalized, corrected)] == [1] * 5
    assert np.abs(equalized.box - plain.box).max() < 0.01 / 512
    assert equalized.score == pytest.approx(plain.score, abs=1e-4)
    assert int8.sqnr < min(int8_equalized.sqnr, corrected.sqnr)
    assert int8.overlap < int8_equalized.overlap
