"""What is written is what comes back: names, structure, dtypes, bits, spec, scales, metadata."""

from __future__ import annotations

import json
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import flaxcle as fc
from flaxcle.checkpoint import extras
from flaxcle.errors import CheckpointError, PathError, SpecError
from flaxcle.paths import named_leaves

KINDS = ("model", "model.safetensors")
RNG = np.random.default_rng(0)
DTYPES = (
    *(np.float32, np.float16, np.float64, ml_dtypes.bfloat16),
    *(np.int8, np.int32, np.int64, np.uint8, np.uint16, np.bool_),
)
PAIR = fc.Group(
    "a -> b",
    (3,),
    (
        fc.Site("params/a/kernel", (1,)),
        fc.Site("params/a/bias", (0,)),
        fc.Site("params/b/kernel", (0,), -1),
    ),
)
SPEC = fc.Spec((PAIR,), unused=("params/c",))
SCALES = fc.Scales(
    {"a -> b": jnp.array([1.0, -0.3, 2.7], jnp.float32)},
    {"a -> b": jnp.array([False, True, False])},
    jnp.asarray(1e-4, jnp.float32),
    jnp.asarray(7, jnp.int32),
)


def params(dtype=np.float32):
    draw = RNG.normal
    layers = {"a": {"kernel": (2, 3), "bias": (3,)}, "b": {"kernel": (3, 4)}}
    return {"params": jax.tree.map(lambda s: draw(size=s).astype(dtype), layers, is_leaf=is_shape)}


def is_shape(node):
    return isinstance(node, tuple)


def assert_same(one, two):
    """Structure, dtypes, shapes and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert (np.shape(a), np.asarray(a).dtype) == (np.shape(b), np.asarray(b).dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def again(path, tree, *, like=None, **beside):
    fc.save_checkpoint(path, tree, **beside)
    return fc.load_checkpoint(path, like=like)


@pytest.mark.parametrize("name", KINDS)
def test_every_dtype_keeps_its_bits(tmp_path, name):
    tree = {"x": {np.dtype(d).name: RNG.integers(0, 2, (2, 3)).astype(d) for d in DTYPES}}
    tree["x"]["bfloat16"] = RNG.normal(size=5).astype(ml_dtypes.bfloat16)
    tree["x"]["scalar"] = np.asarray(1.5, np.float32)
    assert_same(again(tmp_path / name, tree).params, tree)


def test_an_array_without_elements_is_for_safetensors_alone(tmp_path):
    tree = {"w": np.zeros((0, 2), np.float32)}
    assert_same(again(tmp_path / "m.safetensors", tree).params, tree)
    with pytest.raises(CheckpointError, match=r"orbax can't store this tree: .*zero size"):
        fc.save_checkpoint(tmp_path / "model", tree)
    assert os.listdir(tmp_path) == ["m.safetensors"]


@pytest.mark.parametrize("name", KINDS)
def test_strides_and_device_arrays_make_no_difference(tmp_path, name):
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    tree = {"transposed": wide.T, "every_other": wide[:, ::2], "jax": jnp.asarray(wide)}
    plain = jax.tree.map(np.ascontiguousarray, tree)
    assert_same(again(tmp_path / name, tree).params, plain)


def test_orbax_keeps_lists_numbers_and_nothing(tmp_path):
    tree = {"layers": [{"w": np.ones(2)}, {}], "step": 3, "rate": 0.5, "none": None}
    assert_same(again(tmp_path / "model", tree).params, tree)
    assert type(fc.load_checkpoint(tmp_path / "model").params["step"]) is int


def test_names_with_slashes_nest_and_names_with_dots_stay(tmp_path):
    leaf = np.ones(1, np.float32)
    flat = {"params/Conv_0/kernel": leaf, "model.layers.0.weight": leaf}
    found = again(tmp_path / "m.safetensors", flat).params
    assert_same(found, {"params": {"Conv_0": {"kernel": leaf}}, "model.layers.0.weight": leaf})
    assert named_leaves(found).keys() == flat.keys()


def test_names_that_cannot_nest_stay_flat(tmp_path):
    leaf = np.ones(1, np.float32)
    for name in ("w/Adam", "w/Adam/m"):
        flat = {"v/x": leaf, "w": leaf, name: leaf}
        path = tmp_path / f"{name.count('/')}.safetensors"
        assert_same(again(path, flat).params, flat)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
        return nn.Dense(3, kernel_init=init)(x)


class Listed(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)])


def trees():
    boxed = jax.eval_shape(lambda: Boxed().init(jax.random.key(0), jnp.ones((1, 2))))
    state = jax.eval_shape(lambda: nnx.split(Listed(nnx.Rngs(0)))[1])
    fill = lambda leaf: RNG.normal(size=leaf.shape).astype(leaf.dtype)  # noqa: E731
    return {
        "FrozenDict": FrozenDict(params()),
        "boxes": jax.tree.map(fill, boxed),
        "nnx.State": jax.tree.map(fill, state),
        "pure dict": jax.tree.map(fill, nnx.to_pure_dict(state)),
        "tuple": (params()["params"], [np.ones(2)]),
        "leaves named value": {"attention": {"key": np.ones(2), "value": np.zeros(2)}},
    }


@pytest.mark.parametrize("name", KINDS)
def test_like_gives_back_the_structure(tmp_path, name):
    for kind, tree in trees().items():
        path = tmp_path / kind / name
        assert_same(again(path, tree, like=tree).params, tree)
        plain = named_leaves(fc.load_checkpoint(path).params)
        assert plain.keys() == named_leaves(tree).keys()


def test_like_finds_boxes_that_another_program_stored(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = trees()["boxes"]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "theirs", tree)
    assert_same(fc.load_checkpoint(tmp_path / "theirs", like=tree).params, tree)


def test_orbax_restores_what_is_saved(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    tree = params(ml_dtypes.bfloat16)
    fc.save_checkpoint(tmp_path / "ours", tree, spec=SPEC, scales=SCALES)
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "ours"), tree)


@pytest.mark.parametrize("name", KINDS)
def test_like_may_be_abstract_where_numbers_were_stored(tmp_path, name):
    tree = {"step": 3, "rate": 0.5, "w": np.ones(2, np.float32)}
    fc.save_checkpoint(tmp_path / name, tree)
    assert_same(fc.load_checkpoint(tmp_path / name, like=tree).params, tree)
    abstract = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree))
    found = fc.load_checkpoint(tmp_path / name, like=abstract).params
    assert {key: np.asarray(leaf).tolist() for key, leaf in found.items()} == {
        "step": 3,
        "rate": 0.5,
        "w": [1.0, 1.0],
    }


@pytest.mark.parametrize("name", KINDS)
def test_like_places_leaves_on_its_shardings(tmp_path, name):
    mesh = Mesh(np.array(jax.devices()[:2]), ("x",))
    place = NamedSharding(mesh, PartitionSpec("x"))
    leaf = jax.device_put(np.arange(4, dtype=np.float32), place)
    like = {"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=place), "b": np.zeros(1)}
    found = again(tmp_path / name, {"w": leaf, "b": np.ones(1)}, like=like).params
    assert found["w"].sharding == place
    assert_same(found["w"], leaf)
    assert isinstance(found["b"], np.ndarray)


@pytest.mark.parametrize("name", KINDS)
def test_like_of_another_network_is_refused(tmp_path, name):
    path = tmp_path / name
    fc.save_checkpoint(path, {"a": {"kernel": np.ones((2, 3), np.float32)}})
    wrong = {
        "not in the checkpoint: ['a/kernal'], not in `like`: ['a/kernel']; the closest are "
        "'a/kernel'": {"a": {"kernal": np.ones((2, 3), np.float32)}},
        "'a/kernel' is float32 of shape (2, 3) in the checkpoint, float32 of shape (3, 2) in "
        "`like`": {"a": {"kernel": np.ones((3, 2), np.float32)}},
        "float16 of shape (2, 3) in `like`": {"a": {"kernel": np.ones((2, 3), np.float16)}},
    }
    for message, like in wrong.items():
        with pytest.raises(CheckpointError) as caught:
            fc.load_checkpoint(path, like=like)
        assert message in str(caught.value)


@pytest.mark.parametrize("name", KINDS)
def test_spec_and_scales_stand_beside(tmp_path, name):
    beside = {"epoch": "3", "format": "pt"}
    found = again(tmp_path / name, params(), spec=SPEC, scales=SCALES, metadata=beside)
    assert found.spec == SPEC
    assert_same(found.scales.log2, SCALES.log2)
    assert_same(found.scales.kept, SCALES.kept)
    assert (np.float32(found.scales.residual), found.scales.sweeps) == (np.float32(1e-4), 7)
    assert found.metadata == beside
    bare = fc.load_checkpoint(tmp_path / name)
    fc.save_checkpoint(tmp_path / "bare" / name, bare.params, metadata=bare.metadata)
    bare = fc.load_checkpoint(tmp_path / "bare" / name)
    assert (bare.spec, bare.scales, bare.metadata) == (None, None, beside)


def test_metadata_of_orbax_may_be_any_json_and_is_text_in_safetensors(tmp_path):
    beside = {"epoch": 3, "tags": ["a"]}
    assert again(tmp_path / "model", params(), metadata=beside).metadata == beside
    text = again(tmp_path / "m.safetensors", params(), metadata=beside).metadata
    assert {key: json.loads(value) for key, value in text.items()} == beside


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_undo_restores_every_bit_with_powers_of_two(tmp_path, name, dtype):
    tree = params(dtype)
    scales = fc.Scales({"a -> b": jnp.array([9.0, 0.0, -12.0], jnp.float32)})
    scaled = fc.apply_scales(tree, scales, SPEC)
    found = again(tmp_path / name, scaled, spec=SPEC, scales=scales)
    assert_same(fc.apply_scales(found.params, found.scales, found.spec, inverse=True), tree)
    assert np.any(scaled["params"]["a"]["kernel"] != tree["params"]["a"]["kernel"])


def test_undo_restores_to_rounding_with_any_scales(tmp_path):
    tree = params()
    scaled = fc.apply_scales(tree, SCALES, SPEC)
    found = again(tmp_path / "m.safetensors", scaled, spec=SPEC, scales=SCALES)
    back = fc.apply_scales(found.params, found.scales, found.spec, inverse=True)
    for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        np.testing.assert_allclose(one, two, rtol=2**-21)


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_is_replaced_only_by_request(tmp_path, name):
    path = tmp_path / name
    fc.save_checkpoint(path, {"w": np.zeros(1)}, metadata={"run": "1"})
    with pytest.raises(CheckpointError, match=r"won't overwrite .*overwrite=True"):
        fc.save_checkpoint(path, {"w": np.ones(1)})
    assert fc.load_checkpoint(path).params["w"] == 0
    fc.save_checkpoint(path, {"v": np.ones(1)}, overwrite=True)
    found = fc.load_checkpoint(path)
    assert (list(found.params), found.metadata) == (["v"], {})
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_checkpoint_is_never_replaced(tmp_path, name):
    path = tmp_path / name
    path.mkdir()
    (path / "thesis.tex").touch()
    with pytest.raises(CheckpointError, match="won't replace what is no"):
        fc.save_checkpoint(path, {"w": np.ones(1)}, overwrite=True)
    assert os.listdir(path) == ["thesis.tex"]


BAD_LEAVES = {
    "random key": (lambda: jax.random.key(0), "'w' is a PRNGKeyArray. What to do: take it out"),
    "function": (lambda: jax.nn.relu, "can't store a leaf that is no array of numbers: 'w' is a"),
    "text": (lambda: "x", "'w' is a str"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", BAD_LEAVES)
def test_a_leaf_that_is_no_array_is_refused(tmp_path, name, kind):
    leaf, message = BAD_LEAVES[kind]
    with pytest.raises(CheckpointError) as caught:
        fc.save_checkpoint(tmp_path / name, {"w": leaf()})
    assert message in str(caught.value)
    assert not os.listdir(tmp_path)


def test_a_dtype_that_safetensors_could_not_read_back_is_refused(tmp_path):
    tree = {"w": np.zeros(2, ml_dtypes.float8_e4m3fn)}
    with pytest.raises(
        CheckpointError, match=r"'w' is float8_e4m3fn\. What to do: store it as one"
    ):
        fc.save_checkpoint(tmp_path / "m.safetensors", tree)
    assert not os.listdir(tmp_path)


def test_scales_are_checked_against_spec_and_params(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(CheckpointError, match="scales mean nothing without their spec"):
        fc.save_checkpoint(path, params(), scales=SCALES)
    with pytest.raises(PathError, match="the spec scales 'params/a/kernel'"):
        fc.save_checkpoint(path, {"w": np.ones(1)}, spec=SPEC)
    with pytest.raises(SpecError, match="the scales don't belong to this spec"):
        fc.save_checkpoint(path, params(), spec=SPEC, scales=fc.Scales({}))
    assert not os.listdir(tmp_path)


def test_what_cannot_be_read_says_why(tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    (tmp_path / "folder").mkdir()
    fc.save_checkpoint(tmp_path / "run" / "100" / "default", {"w": np.ones(1)})
    broken = tmp_path / "broken"
    fc.save_checkpoint(broken, {"w": np.ones(1)})
    (broken / "manifest.ocdbt").write_bytes(b"")
    cases = {
        "none": "there is no checkpoint",
        "bad.safetensors": "can't read this safetensors file",
        "folder": "not the directory of an orbax tree",
        "run": "pass the directory of one of its trees: ['" + str(tmp_path / "run/100/default"),
        "broken": "can't read this orbax checkpoint",
    }
    for name, message in cases.items():
        with pytest.raises(CheckpointError) as caught:
            fc.load_checkpoint(tmp_path / name)
        assert message in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    with pytest.raises(CheckpointError) as caught:
        extras.package("no_such_package.inside")
    assert "needs the package 'no_such_package'" in str(caught.value)
    assert "pip install 'flaxcle[checkpoint]'" in str(caught.value)
