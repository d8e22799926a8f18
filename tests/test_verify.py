"""`verify`: what is the same, what rounding explains, what is another function."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import verify
from flaxcle.errors import FlaxcleError
from zoo.base import image

X = image(16, 5)
A, C = image(5, 8, seed=1), image(8, 3, seed=2)


def fn(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["c"]


def scaled(factor):
    return {"a": A * factor, "c": C / factor}


BEFORE = scaled(1.0)


def test_powers_of_two_are_identical():
    found = verify(fn, BEFORE, scaled(8.0), X)
    assert found.identical
    assert found.max_absolute == found.max_relative == 0.0
    assert found


def test_rounding_is_equivalent_but_not_identical():
    found = verify(fn, BEFORE, scaled(3.0), X)
    assert not found.identical
    assert 0.0 < found.max_relative <= found.tolerance
    assert found.equivalent


def test_a_changed_function_is_not_equivalent():
    changed = {"a": A, "c": C.at[0, 0].multiply(1.01)}
    found = verify(fn, BEFORE, changed, X)
    assert not found
    assert found.max_relative > found.tolerance
    clean = fn(BEFORE, X)
    worst = float(jnp.abs(clean - fn(changed, X)).max())
    assert found.max_absolute == pytest.approx(worst, rel=1e-5)
    assert found.max_relative == pytest.approx(worst / float(jnp.abs(clean).max()), rel=1e-5)


def test_each_output_is_judged_by_its_own_size_and_dtype():
    """A small output may not hide behind a large one, nor a float32 one behind bfloat16."""

    def outputs(p, x):
        rough = (x * 1e6).astype(jnp.bfloat16)
        return {"large": rough, "small": x * p}

    one = jnp.asarray(1.0)
    assert verify(outputs, one, one, X).identical
    assert not verify(outputs, one, one * 1.001, X)


def test_integer_and_boolean_outputs_are_compared_exactly():
    def labels(p, x):
        return jnp.argmax(x * p[None], -1), (x * p[None]) > 1

    weights = jnp.arange(1.0, 6.0)
    assert verify(labels, weights, weights, X).identical
    assert not verify(labels, weights, -weights, X)


def test_empty_outputs_and_outputs_of_zeros():
    def empty(p, x):
        return x[:0] * p, x * 0 * p

    one = jnp.asarray(1.0)
    assert verify(empty, one, 2 * one, X).identical


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_outputs_that_are_not_finite_are_an_error(bad):
    wrong = {"a": A, "c": C.at[0, 0].set(bad)}
    text = r"can't compare outputs that are not finite: an output of shape \(16, 3\)\. What to do: "
    for pair in ((BEFORE, wrong), (wrong, BEFORE)):
        with pytest.raises(FlaxcleError, match=text + "check params and inputs"):
            verify(fn, *pair, X)


def test_another_structure_of_outputs_is_an_error():
    """The params decide what the function returns: both must return the same arrays."""

    def outputs(p, x):
        return [x * leaf for leaf in p]

    one = jnp.asarray(1.0)
    text = "can't compare functions with different outputs"
    with pytest.raises(FlaxcleError, match=text):
        verify(outputs, [one], [one, one], X)
    with pytest.raises(FlaxcleError, match=text):
        verify(lambda p, x: x[: p.size], jnp.ones(2), jnp.ones(3), X)


def test_no_outputs_is_an_error():
    with pytest.raises(FlaxcleError, match="the function returns no array"):
        verify(lambda p, x: (), BEFORE, BEFORE, X)
