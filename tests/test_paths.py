"""Leaves by name, whatever container holds them."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from flaxcle import paths
from flaxcle.errors import PathError

KERNEL, BIAS = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(3, np.float32)
PLAIN = {"params": {"Dense_0": {"kernel": KERNEL, "bias": BIAS}}}
NAMES = ["params/Dense_0/bias", "params/Dense_0/kernel"]


class Net(nnx.Module):
    def __init__(self) -> None:
        self.layers = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0))])


class Pair(NamedTuple):
    kernel: Any
    bias: Any


def boxed() -> Any:
    return jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), PLAIN)


def equinox_linear() -> Any:
    return {"layers": [eqx.nn.Linear(2, 3, key=jax.random.key(0))]}


CONTAINERS = {
    "dict": (lambda: PLAIN, NAMES),
    "FrozenDict": (lambda: flax.core.freeze(PLAIN), NAMES),
    "boxed": (boxed, NAMES),
    "boxed and frozen": (lambda: flax.core.freeze(boxed()), NAMES),
    "nnx.State": (lambda: nnx.state(Net()), ["layers/0/bias", "layers/0/kernel"]),
    "nnx.Module": (Net, ["layers/0/bias", "layers/0/kernel"]),
    "pure dict": (
        lambda: nnx.to_pure_dict(nnx.state(Net())),
        ["layers/0/bias", "layers/0/kernel"],
    ),
    "Equinox": (equinox_linear, ["layers/0/weight", "layers/0/bias"]),
    "tuples and lists": (lambda: [(KERNEL, BIAS), {"a": [BIAS]}], ["0/0", "0/1", "1/a/0"]),
    "named tuple": (lambda: Pair(KERNEL, BIAS), ["kernel", "bias"]),
    "shapes": (lambda: jax.eval_shape(lambda: jax.tree.map(jnp.asarray, PLAIN)), NAMES),
    "a leaf called value": (lambda: {"value": KERNEL, "a": {"value": BIAS}}, ["a/value", "value"]),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_names_of_any_container(name: str) -> None:
    make, names = CONTAINERS[name]
    assert list(paths.named_leaves(make())) == names


@pytest.mark.parametrize("name", CONTAINERS)
def test_mapping_keeps_the_structure_and_passes_the_names(name: str) -> None:
    make, names = CONTAINERS[name]
    tree, seen = make(), []
    mapped = paths.map_named(lambda path, leaf: seen.append(path) or leaf, tree)
    assert jax.tree.structure(mapped) == jax.tree.structure(tree)
    assert seen == names


@pytest.mark.parametrize("name", [name for name in CONTAINERS if name != "shapes"])
def test_replacing_keeps_structure_dtype_and_the_other_leaves(name: str) -> None:
    make, names = CONTAINERS[name]
    tree = make()
    new = paths.replace_leaves(tree, {names[0]: np.float16(2.0)})
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    before, after = paths.named_leaves(tree), paths.named_leaves(new)
    assert after[names[0]].dtype == before[names[0]].dtype
    assert float(after[names[0]]) == 2.0
    assert all(after[other] is before[other] for other in names[1:])


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ((), ""),
        ((GetAttrKey("value"),), "value"),
        ((DictKey("a"), GetAttrKey("value")), "a"),
        ((DictKey("a"), DictKey("value")), "a/value"),
        ((GetAttrKey("value"), SequenceKey(3)), "value/3"),
        ((DictKey(0), DictKey("kernel"), GetAttrKey("value")), "0/kernel"),
    ],
)
def test_only_a_trailing_box_is_dropped(keys: tuple[Any, ...], name: str) -> None:
    assert paths.canonical(keys) == name


def test_masked_nodes_of_optax_have_no_leaf() -> None:
    masked = {"a": optax.MaskedNode(), "b": KERNEL}
    assert list(paths.named_leaves(masked)) == ["b"]


def test_two_leaves_of_one_name_are_refused() -> None:
    with pytest.raises(PathError) as error:
        paths.named_leaves({"a/b": KERNEL, "a": {"b": BIAS}})
    assert "two leaves have the same path 'a/b'" in str(error.value)
    assert "the tree has 2 leaves and 1 paths" in str(error.value)
    assert "'/' inside a key reads as a separator" in str(error.value)


KNOWN = [
    "batch_stats/block/BatchNorm_0/mean",
    "params/block/BatchNorm_0/scale",
    "params/block/Conv_0/bias",
    "params/block/Conv_0/kernel",
    "params/block/Conv_01/kernel",
    "params/head",
]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("params/block/Conv_0/kernel", [3]),
        ("block/Conv_0/kernel", [3]),
        ("block/Conv_0", [2, 3]),
        ("params/block/Conv_0", [2, 3]),
        ("/block/Conv_0/", [2, 3]),
        ("block/BatchNorm_0", [0, 1]),
        ("params/block/BatchNorm_0", [1]),
        ("batch_stats", [0]),
        ("block", [0, 1, 2, 3, 4]),
        ("head", [5]),
    ],
)
def test_a_name_is_a_leaf_or_a_module_with_or_without_collection(
    name: str, found: list[int]
) -> None:
    assert paths.resolve(name, iter(KNOWN)) == [KNOWN[i] for i in found]


@pytest.mark.parametrize("name", ["Conv_0", "block/Conv", "block/Conv_0/kernel/value", ""])
def test_a_part_of_a_name_is_no_name(name: str) -> None:
    with pytest.raises(PathError) as error:
        paths.resolve(name, KNOWN)
    assert f"no leaf or module is named {name!r}" in str(error.value)
    assert "the tree has 6 leaves in 3 modules" in str(error.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("block/Conv_O", "'block/Conv_0'"), ("block/Conv_0/kernal", "'block/Conv_0/kernel'")],
)
def test_the_closest_names_are_listed(name: str, nearest: str) -> None:
    with pytest.raises(PathError) as error:
        paths.resolve(name, KNOWN)
    assert nearest in str(error.value)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("params/Conv_0/kernel", ("params/Conv_0", "kernel", "Conv_0/kernel")),
        ("batch_stats/n/mean", ("batch_stats/n", "mean", "n/mean")),
        ("clips/n/max", ("clips/n", "max", "n/max")),
        ("opt/n", ("opt", "n", "opt/n")),
        ("params", ("", "params", "params")),
    ],
)
def test_parts_of_a_path(path: str, parts: tuple[str, str, str]) -> None:
    assert (paths.parent(path), paths.leaf_name(path), paths.strip_collection(path)) == parts


@pytest.mark.parametrize(
    ("leaf", "floating", "shape"),
    [
        (KERNEL, True, (2, 3)),
        (jnp.ones(2, jnp.bfloat16), True, (2,)),
        (jax.ShapeDtypeStruct((4,), jnp.float8_e4m3fn), True, (4,)),
        (1.5, True, ()),
        (3, False, ()),
        (True, False, ()),
        (np.ones(2, np.complex64), False, (2,)),
        (np.ones((1, 2), np.int8), False, (1, 2)),
        (jax.random.key(0), False, ()),
        (jax.nn.relu, False, ()),
    ],
)
def test_what_a_leaf_is(leaf: Any, floating: bool, shape: tuple[int, ...]) -> None:
    assert paths.is_float(leaf) == floating
    assert paths.shape_of(leaf) == shape


def test_dtype_of_a_number_is_that_of_its_array() -> None:
    assert paths.dtype_of(1.5) == jnp.float32
    assert paths.dtype_of(BIAS) == np.float32
