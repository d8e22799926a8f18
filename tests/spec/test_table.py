"""The central table is static, hashable and refuses what can't be a row."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxcle import Blocked, Group, Index, Scales, Site, Spec
from flaxcle.errors import SpecError
from flaxcle.spec.table import channels, normal_axes

SPEC = Spec(
    (
        Group("Conv_0 -> Conv_1", (4,), (Site("params/Conv_0/kernel", (-1,)),)),
        Group("Conv_1 -> Dense_0", (4,), (Site("params/Conv_1/kernel", (-1,)),), held=True),
        Group("block/Conv_0 -> Dense_0", (4,), (Site("params/block/Conv_0/bias", (0,)),)),
    ),
    blocked=(Blocked("params/x", 0, "reason"),),
    unused=("params/y",),
)


def test_equal_rows_are_equal_objects() -> None:
    assert Site("a", 0) == Site("a", (0,), 1.0) == Site("a", [np.int64(0)], Fraction(1))
    assert hash(Site("a", 0)) == hash(Site("a", (0,), 1))
    assert Site("a", (0,), 1 / 3).power == Fraction(1, 3)
    assert Site("a", (0,), 1, np.arange(3)) == Site("a", (0,), 1, Index.of(np.arange(3)))
    assert Group("g", [2], [Site("a", 0)]) == Group("g", (2,), (Site("a", 0),))


def test_a_pickled_spec_has_the_hash_of_the_process_that_reads_it(tmp_path: Path) -> None:
    assert SPEC in {SPEC}, "the hash is known before the spec is written"
    (tmp_path / "spec").write_bytes(pickle.dumps(SPEC))
    script = f"""
import pickle
from flaxcle import Spec
from pathlib import Path
spec = pickle.loads(Path({str(tmp_path / "spec")!r}).read_bytes())
assert spec in {{Spec(spec.groups, spec.blocked, spec.unused)}}
"""
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_a_row_prints_on_a_line() -> None:
    assert repr(Site("a", (0,), -1)) == "Site('a', axes=(0,), power=-1)"
    assert repr(Site("a", (0,), 1, np.arange(3))) == "Site('a', axes=(0,), power=1, index=(3,))"


def test_a_spec_is_a_static_argument_that_does_not_retrace() -> None:
    traces = []

    @partial(jax.jit, static_argnums=1)
    def scaled(x: jax.Array, spec: Spec) -> jax.Array:
        traces.append(spec)
        return x * spec.scales

    for spec in (SPEC, Spec.from_json(SPEC.to_json())):
        assert scaled(jnp.ones(()), spec) == 12
    assert len(traces) == 1


def test_producers_and_consumers_by_power() -> None:
    sites = (Site("a", 0, 1), Site("b", 0, -2), Site("c", 0, 2))
    group = Group("g", (2,), sites)
    assert group.producers == (sites[0], sites[2])
    assert group.consumers == (sites[1],)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ((), [0, 1, 2]),
        (("Conv_0 -> Conv_1",), [0]),
        (("Conv_1",), [1]),
        (("params/Conv_1/kernel",), [1]),
        (("Conv_0",), [0]),
        (("params/block",), [2]),
        (("block/*",), [2]),
        (("block", "Conv_1"), [1, 2]),
        (("block/Conv_0",), [2]),
        (("*Dense_0",), [1, 2]),
    ],
)
def test_select_takes_names_paths_modules_and_patterns(
    names: tuple[str, ...], chosen: list[int]
) -> None:
    part = SPEC.select(*names)
    assert [group.name for group in part.groups] == [SPEC.groups[i].name for i in chosen]
    assert not any(group.held for group in part.groups)
    assert (part.blocked, part.unused) == (SPEC.blocked, SPEC.unused)


def test_select_of_nothing_names_the_closest() -> None:
    with pytest.raises(SpecError) as error:
        SPEC.select("Conv_0 -> Conv_2")
    assert "no group matches 'Conv_0 -> Conv_2'" in str(error.value)
    assert "'Conv_0 -> Conv_1'" in str(error.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Site("a", 0, 0), "'a' has power 0"),
        (lambda: Group("g", (2,), ()), "group 'g' has 0 sites"),
        (lambda: Group("g", (0,), (Site("a", 0),)), "shape (0,)"),
        (
            lambda: Spec((SPEC.groups[0], SPEC.groups[0])),
            "['Conv_0 -> Conv_1'] occur more than once",
        ),
    ],
)
def test_refuses(make, text: str) -> None:
    with pytest.raises(SpecError) as error:
        make()
    assert text in str(error.value)


def test_axes_and_channels_of_a_site() -> None:
    site = Site("a", (-1, 0), 1)
    assert normal_axes(site, 3) == (2, 0)
    assert channels(site, (2, 5, 3)).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert normal_axes(Site("a", ()), 0) == ()
    assert channels(Site("a", (0,), 1, np.array([1, -1])), (2,)).tolist() == [1, -1]


def test_scales_are_a_pytree_of_log2() -> None:
    scales = Scales.zeros(SPEC)
    assert {leaf.dtype for leaf in jax.tree.leaves(scales.log2)} == {jnp.dtype("float32")}
    doubled = jax.tree.map(lambda leaf: leaf + 1, scales)
    assert doubled["Conv_0 -> Conv_1"].tolist() == [2.0] * 4
