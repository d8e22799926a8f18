"""Scales as text: exact to the bit; anything else is refused."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import Scales
from flaxcle.errors import SpecError

DRAWN = np.random.default_rng(0).normal(size=(40, 25)).astype(np.float32)
SCALES = Scales(
    {
        "a -> b": jnp.array([0.1, -126.0, 2**-20, 1 / 3], jnp.float32),
        "späte Gruppe": jnp.asarray(DRAWN),
        "one": jnp.asarray(2.0, jnp.float32),
    },
    {"a -> b": jnp.array([False, True, False, True]), "one": jnp.array(False)},
    jnp.asarray(1.5e-4, jnp.float32),
    jnp.asarray(12, jnp.int32),
)


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (two[name].dtype, two[name].shape)
        np.testing.assert_array_equal(one[name], two[name])


def test_round_trip_is_exact():
    again = Scales.from_json(SCALES.to_json())
    assert_same(again.log2, SCALES.log2)
    assert_same(again.kept, SCALES.kept)
    assert (np.float32(again.residual), again.sweeps) == (np.float32(1.5e-4), 12)
    assert again.to_json() == SCALES.to_json()
    assert Scales.from_json(Scales({}).to_json()).log2 == {}


def test_numbers_are_as_short_as_float32_allows():
    row = json.loads(SCALES.to_json())["groups"][0]
    assert row["log2"] == [0.1, -126.0, 9.536743e-07, 0.33333334]
    assert row["kept"] == [1, 3]


def edited(old, new):
    text = SCALES.to_json()
    assert old in text
    return text.replace(old, new, 1)


BAD = {
    "no JSON": ("{", "the text of scales is not JSON"),
    "a spec": ('{"flaxcle_spec": 1}', "can't read scales of version None"),
    "newer version": (edited('_scales": 1', '_scales": 2'), "can't read scales of version 2"),
    "too few": (edited("0.1, ", ""), "groups[0].log2 must be 4 finite numbers"),
    "not finite": (edited("0.1, ", "NaN, "), "groups[0].log2 must be 4 finite numbers"),
    "text": (edited("0.1, ", '"0.1", '), "groups[0].log2 must be float, got '0.1'"),
    "no shape": (edited('"shape": [4], ', ""), "groups[0] must be an object with the fields"),
    "kept": (edited("[1, 3]", "[1, 3.0]"), "groups[0].kept must be int, got 3.0"),
    "sweeps": (edited('"sweeps": 12', '"sweeps": null'), "the scales.sweeps must be int, got None"),
}


@pytest.mark.parametrize("case", BAD)
def test_anything_else_is_refused(case):
    text, message = BAD[case]
    with pytest.raises(SpecError) as caught:
        Scales.from_json(text)
    assert message in str(caught.value)
    assert "Scales.to_json" in str(caught.value) or "to_json wrote" in str(caught.value)
