"""The subjects of the accuracy tables: shapes, splits, determinism, and that the weights work."""

from __future__ import annotations

import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import accuracy_nets
from accuracy_nets import classifier, gpt, storage, text
from accuracy_nets.depthwise import ShiftedDepthwise
from accuracy_nets.mobilenet_v2 import MobileNetV2
from accuracy_nets.resnet18 import ResNet18

import idx
import imagenet

needs_originals = pytest.mark.skipif(
    not idx.DEBIAN.exists(), reason="Debian's dataset-fashion-mnist is not installed"
)
needs_bench = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("skimage", "sklearn", "networkx")),
    reason="the extra 'bench' is not installed",
)
needs_backbone = pytest.mark.skipif(
    find_spec(imagenet.PACKAGE) is None, reason="the extra 'demo' is not installed"
)

SUBJECTS = [
    pytest.param("lite0_head", 512, 10_000, (49, 49, 3), marks=[needs_originals, needs_backbone]),
    pytest.param("lite0_photos", 128, 1024, (224, 224, 3), marks=[needs_bench, needs_backbone]),
    pytest.param("mobilenet_v2", 512, 10_000, (28, 28, 1), marks=needs_originals),
    pytest.param("resnet18", 512, 10_000, (28, 28, 1), marks=needs_originals),
    pytest.param("gpt", 512, 1024, (gpt.LENGTH,), marks=needs_bench),
]
LOADABLE = [pytest.param(p.values[0], marks=p.marks) for p in SUBJECTS]
TRAINED = [p for p in LOADABLE if not p.values[0].startswith("lite0")]


def rows(batches):
    """The examples as bytes."""
    return [row.tobytes() for batch in batches for row in np.asarray(batch)]


@pytest.fixture(scope="module")
def load():
    """Each subject is built once."""
    built = {}

    def get(name):
        if name not in built:
            built[name] = accuracy_nets.load(name)
        return built[name]

    return get


def test_every_name_is_tested_here():
    assert [p.values[0] for p in SUBJECTS] == list(accuracy_nets.NAMES)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"called 'vgg'; there are lite0_head, .*, gpt"):
        accuracy_nets.load("vgg")


@pytest.mark.parametrize(("name", "calibration", "test", "shape"), SUBJECTS)
def test_batches_have_the_stated_sizes(load, name, calibration, test, shape):
    subject = load(name)
    assert subject.name == name
    assert {x.shape[1:] for x in [*subject.calibration, *subject.test]} == {shape}
    assert {x.dtype for x in [*subject.calibration, *subject.test]} == {subject.inputs.dtype}
    assert sum(len(x) for x in subject.calibration) == calibration
    assert sum(len(x) for x in subject.test) == test
    if subject.labels is not None:
        assert [len(y) for y in subject.labels] == [len(x) for x in subject.test]
    assert (subject.labels is None) == (subject.metric == "agreement")


# lite0_head has the images of mobilenet_v2.
@pytest.mark.parametrize("name", LOADABLE[1:])
def test_calibration_and_test_share_no_example(load, name):
    subject = load(name)
    assert not set(rows(subject.calibration)) & set(rows(subject.test))


@pytest.mark.parametrize("name", LOADABLE)
def test_the_function_gives_logits_for_its_inputs(load, name):
    subject = load(name)
    logits = jax.eval_shape(subject.fn, subject.variables, subject.inputs)
    assert logits.shape[0] == len(subject.inputs)
    assert logits.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(subject.variables)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", TRAINED)
def test_loading_again_gives_the_same(load, name):
    first, second = load(name), accuracy_nets.load(name)
    assert rows(first.calibration) == rows(second.calibration)
    assert rows(first.test) == rows(second.test)
    jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)


@needs_bench
@needs_backbone
def test_crops_depend_on_the_seed_alone(load):
    lite0_photos = import_module("accuracy_nets.lite0_photos")
    test = load("lite0_photos").test[0]
    again = lite0_photos.crops(lite0_photos.BATCH, lite0_photos.TEST_SEED)[0]
    other = lite0_photos.crops(lite0_photos.BATCH, lite0_photos.TEST_SEED + 1)[0]
    np.testing.assert_array_equal(test, again)
    assert not set(rows([test])) & set(rows([other]))


@needs_originals
@pytest.mark.parametrize(("name", "least"), [("mobilenet_v2", 0.85), ("resnet18", 0.85)])
def test_the_committed_weights_classify(load, name, least):
    subject = load(name)
    logits = [jax.jit(subject.fn)(subject.variables, x) for x in subject.test[:2]]
    correct = [
        z.argmax(-1) == y for z, y in zip(logits, subject.labels[: len(logits)], strict=True)
    ]
    assert np.mean(correct) > least


@needs_bench
def test_the_committed_weights_predict_text(load):
    subject = load("gpt")
    logits = jax.jit(subject.fn)(subject.variables, subject.test[0])
    chances = jnp.take_along_axis(jax.nn.log_softmax(logits), subject.labels[0][..., None], -1)
    assert np.exp(-chances.mean()) < 6  # 128 tokens; by the frequency of characters alone, about 20


@pytest.mark.parametrize(
    ("name", "module", "shape"),
    [
        ("mobilenet_v2", MobileNetV2(), (1, 28, 28, 1)),
        ("resnet18", ResNet18(), (1, 28, 28, 1)),
        ("gpt", gpt.GPT(), (1, gpt.LENGTH)),
    ],
)
def test_weights_are_those_of_the_network(name, module, shape):
    x = jnp.zeros(shape, jnp.int32 if name == "gpt" else jnp.float32)
    expected = jax.eval_shape(module.init, jax.random.key(0), x)
    stored = storage.load_weights(name)
    assert jax.tree.map(np.shape, stored) == jax.tree.map(np.shape, expected)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stored))


@pytest.mark.parametrize("module", [MobileNetV2, ResNet18])
def test_training_and_evaluation_have_the_same_parameters(module):
    x, key = jnp.zeros((2, 28, 28, 1)), jax.random.key(0)
    train, evaluate = (jax.eval_shape(module(train=flag).init, key, x) for flag in (True, False))
    assert jax.tree.map(np.shape, train) == jax.tree.map(np.shape, evaluate)


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 6), (3, 2, 6), (3, 2, 7)])
def test_shifted_products_are_the_depthwise_convolution(size, stride, side):
    x = jax.random.normal(jax.random.key(0), (2, side, side, 4))
    shifted = ShiftedDepthwise(size, stride)
    conv = nn.Conv(
        4,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=4,
        use_bias=False,
    )
    variables = conv.init(jax.random.key(1), x)

    weights = jax.random.normal(jax.random.key(2), conv.apply(variables, x).shape)

    @partial(jax.jit, static_argnums=0)
    def value_and_grads(module, *operands):
        value, pull_back = jax.vjp(module.apply, *operands)
        return value, pull_back(weights)

    ours, theirs = (value_and_grads(module, variables, x) for module in (shifted, conv))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=0), ours, theirs)


def test_augmenting_moves_an_image_by_two_pixels_at_most():
    images = jnp.zeros((64, 9, 9)).at[:, 4, 4].set(1)
    moved = np.asarray(classifier.augment(images, jax.random.key(0)))
    places = np.argwhere(moved)
    np.testing.assert_array_equal(places[:, 0], np.arange(64))
    assert set(map(abs, (places[:, 1:] - 4).ravel().tolist())) == {0, 1, 2}


def test_a_position_of_the_gpt_sees_nothing_that_follows():
    fn, variables = gpt.GPT().apply, storage.load_weights("gpt")
    tokens = jax.random.randint(jax.random.key(0), (1, gpt.LENGTH), 32, 127)
    changed = tokens.at[0, 60:].set(ord("x"))
    before, after = fn(variables, tokens), fn(variables, changed)
    np.testing.assert_allclose(before[:, :60], after[:, :60], atol=1e-4)
    assert np.abs(before - after)[:, 60:].max() > 0.1


@needs_bench
def test_the_text_is_the_one_that_the_gpt_was_trained_on():
    assert len(text.tokens()) == 1_910_712
    assert len(text.training_text()) + len(text.test_text()) == len(text.tokens())
    assert set(np.unique(text.tokens())) <= set(range(text.TOKENS))


def test_windows_are_followed_by_their_targets():
    inputs, targets = text.windows(np.arange(100), np.array([3, 50]), 5)
    np.testing.assert_array_equal(inputs, [[3, 4, 5, 6, 7], [50, 51, 52, 53, 54]])
    np.testing.assert_array_equal(targets, inputs + 1)


def test_documentation_is_in_order_and_said_once(tmp_path):
    long, longer = "a" * text.SHORTEST, "b" * text.SHORTEST
    (tmp_path / "tests").mkdir()
    (tmp_path / "two.py").write_text(f"def f():\n    '''{longer}'''\n    return '{long}'\n")
    (tmp_path / "one.py").write_text(f"x = '{long}', 'short'\n")
    assert list(text.documentation(tmp_path)) == [long, longer]


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    settings = classifier.Settings(epochs=1)
    path = tmp_path / storage.checkpoint_path("net", settings).name
    state = {"b": jnp.arange(3), "a": (jnp.ones((2, 2)), np.float32(4))}
    assert storage.load_checkpoint(path, state) == (state, 0)
    storage.save_checkpoint(path, state, 7)
    loaded, epochs = storage.load_checkpoint(path, jax.tree.map(jnp.zeros_like, state))
    assert epochs == 7
    jax.tree.map(np.testing.assert_array_equal, loaded, state)


def test_each_setting_has_its_own_checkpoint():
    settings = [classifier.Settings(epochs=1), classifier.Settings(epochs=2)]
    assert len({storage.checkpoint_path("net", s) for s in settings}) == 2


def test_missing_weights_say_how_to_make_them():
    with pytest.raises(FileNotFoundError, match=r"python -m benchmarks\.accuracy_nets\.train_none"):
        storage.load_weights("none")
