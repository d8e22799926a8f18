"""Specs as text: exact, stable, one row a line; anything else is refused."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
import pytest

from flaxcle import Blocked, Group, Site, Spec
from flaxcle.errors import SpecError

SPEC = Spec(
    groups=(
        Group(
            "Conv_0 -> Dense_0",
            (4,),
            (
                Site("params/Conv_0/kernel", (-1,), 1),
                Site("params/norm/var", (0,), 2),
                Site("params/root/kernel", (1, 2), Fraction(1, 2), np.arange(4).reshape(2, 2)),
                Site("params/Dense_0/kernel", (0,), -1, np.tile(np.arange(4), 9)),
            ),
        ),
        Group("späte Gruppe", (2, 3), (Site("a", (0, 1), -2),), held=True),
    ),
    blocked=(
        Blocked("params/x/kernel", 1, "gelu is not homogeneous", "tanh", "Block_0", "m.py:3"),
        Blocked("params/y/kernel", 0, 'says "no"'),
    ),
    unused=("params/dead/kernel",),
)


def test_round_trip_is_exact() -> None:
    again = Spec.from_json(SPEC.to_json())
    assert again == SPEC
    assert hash(again) == hash(SPEC)
    assert again.to_json() == SPEC.to_json()
    assert Spec.from_json(Spec().to_json()) == Spec()


def test_text_is_plain_json_with_its_version_first() -> None:
    data = json.loads(SPEC.to_json())
    assert next(iter(data)) == "flaxcle_spec"
    assert data["flaxcle_spec"] == 1
    assert data["groups"][0]["sites"][2]["power"] == "1/2"
    assert data["groups"][0]["sites"][3]["index"] == {"shape": [36], "runs": [[0, 4, 1, 1, 9]]}


def test_a_changed_row_changes_one_line() -> None:
    changed = SPEC.to_json().replace(
        '"params/norm/var", "axes": [0]', '"params/norm/var", "axes": [1]'
    )
    old, new = SPEC.to_json().splitlines(), Spec.from_json(changed).to_json().splitlines()
    assert [a for a, b in zip(old, new, strict=True) if a != b] == [
        '      {"path": "params/norm/var", "axes": [0], "power": "2"},'
    ]


def test_rows_stand_on_their_own_lines() -> None:
    lines = SPEC.to_json().splitlines()
    for text in ("params/Conv_0/kernel", "späte Gruppe", "params/y/kernel", "params/dead/kernel"):
        assert sum(json.dumps(text) in line for line in lines) == 1


def edited(old: str, new: str) -> str:
    assert old in SPEC.to_json()
    return SPEC.to_json().replace(old, new, 1)


BAD = {
    "no JSON": ("{", "the text of a spec is not JSON: Expecting property name"),
    "no text": (None, "the text of a spec is not JSON"),
    "a list": ("[]", "can't read a spec of version None"),
    "no version": ("{}", "this flaxcle reads version 1, field 'flaxcle_spec'"),
    "newer version": (edited('_spec": 1', '_spec": 2'), "can't read a spec of version 2"),
    "version as text": (edited('_spec": 1', '_spec": "1"'), "can't read a spec of version '1'"),
    "version as truth": (edited('_spec": 1', '_spec": true'), "can't read a spec of version True"),
    "missing part": (edited('"unused"', '"spare"'), "the spec must be an object with the fields"),
    "missing field": (edited('"axes"', '"axis"'), "groups[0].sites[0] must be an object with"),
    "unknown field": (
        edited('"held": false', '"held": false, "x": 1'),
        "groups[0] must be an object",
    ),
    "wrong type": (edited('"held": false', '"held": 0'), "groups[0].held must be bool, got 0"),
    "group of no type": (edited('"groups": [', '"groups": [3, '), "groups[0] must be an object"),
    "axis of wrong type": (
        edited("[-1]", "[-1.0]"),
        "groups[0].sites[0].axes must be int, got -1.0",
    ),
    "no fraction": (edited('"2"', '"2x"'), "groups[0].sites[1].power must be a fraction such as"),
    "division by zero": (edited('"2"', '"2/0"'), "sites[1].power must be a fraction such as"),
    "power zero": (edited('"2"', '"0"'), "a site needs a power"),
    "short run": (edited("[0, 4, 1, 1, 9]", "[0, 4]"), "index.runs[0] must be 5 numbers"),
    "wrong run": (edited("[0, 4, 1, 1, 9]", "[0, 4, 1, 1, 8]"), "36 positions, runs 32"),
    "unused of wrong type": (edited('"params/dead/kernel"', "7"), "unused[0] must be str, got 7"),
    "blocked without axis": (edited('"axis": 1, ', ""), "blocked[0] must be an object with the"),
    "two equal names": (edited("sp\\u00e4te Gruppe", "Conv_0 -> Dense_0"), "must be unique"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_refused(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(SpecError) as error:
        Spec.from_json(text)
    assert message in str(error.value)
