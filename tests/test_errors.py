"""The message of an error: what was asked, where, what to do next."""

from __future__ import annotations

import inspect

import pytest

from flaxcle import errors
from flaxcle.errors import FlaxcleError, closest


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "cannot scale"),
        ({"where": "'a' of shape (3,)"}, "cannot scale: 'a' of shape (3,)"),
        ({"then": "drop it"}, "cannot scale. What to do: drop it."),
        ({"where": "'a'", "then": "drop it"}, "cannot scale: 'a'. What to do: drop it."),
    ],
)
def test_the_three_parts(parts: dict[str, str], message: str) -> None:
    assert str(FlaxcleError("cannot scale", **parts)) == message


def test_one_base_class_that_is_a_value_error() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    own = [kind for kind in kinds if kind.__module__ == errors.__name__]
    assert len(own) > 5
    assert all(issubclass(kind, FlaxcleError) and issubclass(kind, ValueError) for kind in own)


def test_closest_names_first_and_some_names_always() -> None:
    known = ["Conv_0/kernel", "Conv_0/bias", "Dense_0/kernel", "Dense_0/bias"]
    assert closest("Conv_0/kernal", known, count=1) == "'Conv_0/kernel'"
    assert closest("Dense_0", known).startswith("'Dense_0/")
    assert closest("zzz", known, count=2) == "'Conv_0/kernel', 'Conv_0/bias'"
    assert closest("zzz", iter(known), count=1) == "'Conv_0/kernel'"
    assert closest("zzz", []) == ""
