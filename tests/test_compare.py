"""The numbers that say whether int8 works, and the comparisons that are refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import compare
from flaxcle.compare import sqnr
from flaxcle.errors import ConfigError

LOGITS = np.random.default_rng(0).normal(size=(50, 7))


@pytest.mark.parametrize("ratio", [1.0, 0.1, 1e-3, 1e-6])
def test_sqnr_is_twenty_decibels_per_decade(ratio: float) -> None:
    assert sqnr(LOGITS, LOGITS * (1 + ratio)) == pytest.approx(-20 * np.log10(ratio))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_sqnr_does_not_depend_on_the_unit(scale: float) -> None:
    noisy = LOGITS + 0.1
    assert sqnr(scale * LOGITS, scale * noisy) == pytest.approx(sqnr(LOGITS, noisy))


def test_sqnr_at_its_ends() -> None:
    assert sqnr(LOGITS, LOGITS) == float("inf")
    assert sqnr(np.zeros(3), np.zeros(3)) == float("inf")
    assert sqnr(np.zeros(3), np.ones(3)) == float("-inf")
    assert np.isnan(sqnr(np.ones(3), np.array([1.0, np.nan, 1.0])))


def test_sqnr_reads_half_precision() -> None:
    x = jnp.asarray(LOGITS, jnp.bfloat16)
    assert 45 < sqnr(LOGITS, x) < 60


def test_sqnr_of_unequal_shapes_is_an_error() -> None:
    with pytest.raises(ConfigError) as error:
        sqnr(np.ones((3, 1)), np.ones(3))
    assert str(error.value) == (
        "the other array has another shape than the reference: (3,) against (3, 1). "
        "What to do: evaluate both on the same inputs."
    )


def test_a_row_for_the_reference_and_each_candidate() -> None:
    labels = LOGITS.argmax(-1)
    labels[:10] = (labels[:10] + 1) % 7
    other = LOGITS.copy()
    other[40:] = -other[40:]
    changed = np.mean(other.argmax(-1) != LOGITS.argmax(-1))
    table = compare(LOGITS, {"same": LOGITS, "other": other}, labels=labels)
    assert table.columns == ("", "accuracy %", "agreement %", "SQNR dB")
    assert table.column("") == ["float", "same", "other"]
    right = 100 * np.mean(other.argmax(-1) == labels)
    np.testing.assert_allclose(table.column("accuracy %"), [80, 80, right])
    np.testing.assert_allclose(table.column("agreement %"), [100, 100, 100 * (1 - changed)])
    assert table.column("SQNR dB") == [float("inf"), float("inf"), sqnr(LOGITS, other)]


def test_without_labels_there_is_no_accuracy() -> None:
    assert compare(LOGITS, {}).columns == ("", "agreement %", "SQNR dB")


def test_a_candidate_of_another_shape_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError) as error:
        compare(LOGITS, {"int8": LOGITS[:-1]})
    assert str(error.value) == (
        "'int8' has another shape than the reference: (49, 7) against (50, 7). "
        "What to do: evaluate both on the same inputs."
    )


@pytest.mark.parametrize("labels", [np.eye(7)[np.zeros(50, int)], np.zeros((50, 1)), np.zeros(1)])
def test_labels_of_another_shape_are_an_error(labels: np.ndarray) -> None:
    with pytest.raises(ConfigError) as error:
        compare(LOGITS, {}, labels=labels)
    assert str(error.value) == (
        f"there must be one label per row of the reference: labels of shape {labels.shape}, "
        "outputs of shape (50, 7). What to do: pass class indices, not one-hot rows."
    )
