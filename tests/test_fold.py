"""`fold_batch_norm`: the same function, idle norms, whatever the spelling and the layer before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import NamedSharding, PartitionSpec

from flaxcle.errors import FoldError
from flaxcle.fold import fold_batch_norm
from flaxcle.paths import named_leaves, replace_leaves
from zoo import build, networks
from zoo.base import draw, image

EPS = 1e-3


WITH_NORM = (
    "densenet_preactivation",
    "detector_ssd",
    "efficientnet",
    "mobilenetv1",
    "mobilenetv1_relu6",
    "mobilenetv2",
    "mobilenetv2_nnx",
    "mobilenetv3",
    "resnet18",
    "resnet18_nnx",
)


def double(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float64), tree)


def check(fn: Callable[..., Any], variables: Any, *inputs: Any) -> dict[str, jax.Array]:
    """Folds in float64 and in float32, compares the outputs, and returns the float32 leaves."""
    with jax.enable_x64(True):
        wide, args = double((variables, inputs))
        folded = fold_batch_norm(fn, wide, *args)
        compare(jax.jit(fn)(wide, *args), jax.jit(fn)(folded, *args), 1e-9)
    folded = fold_batch_norm(fn, variables, *inputs)
    compare(jax.jit(fn)(variables, *inputs), jax.jit(fn)(folded, *inputs), 1e-5)
    again = fold_batch_norm(fn, folded, *inputs)
    jax.tree.map(np.testing.assert_array_equal, again, folded)
    assert jax.tree.structure(folded) == jax.tree.structure(variables)
    return named_leaves(folded)


def compare(before: Any, after: Any, tolerance: float) -> None:
    for one, two in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        scale = float(jnp.abs(one).max())
        np.testing.assert_allclose(two, one, rtol=0, atol=tolerance * scale)


def linen(module: nn.Module, *inputs: Any) -> Any:
    """Trained-looking variables of a module."""
    return draw(type(module).__name__, jax.eval_shape(module.init, jax.random.key(0), *inputs))


def idle(leaves: dict[str, Any], module: str, eps: float = EPS) -> bool:
    """Whether the norm has gain exactly 1 and no shift but its bias."""
    values = {path: np.asarray(v) for path, v in leaves.items() if f"/{module}/" in f"/{path}"}
    at = {path.rsplit("/", 1)[-1]: value for path, value in values.items()}
    root = np.float32(1) / np.sqrt(at["var"] + np.float32(eps))
    return bool((root == 1).all() and (at.get("scale", np.ones(1)) == 1).all())


@pytest.mark.parametrize("steps", [1, 2, 10, 49, 98, 103, 1000])
def test_averages_that_are_debiased_when_read(steps):
    count = np.float32(1) - np.float32(0.99) ** np.float32(steps)

    def fn(v, x):
        mean, var = v["mean"] / count, v["var"] / count
        return (x @ v["kernel"] - mean[None]) / jnp.sqrt(var + EPS)[None] + v["bias"][None]

    rng = np.random.default_rng(steps)
    v = {name: jnp.asarray(rng.uniform(0.5, 2, 3), jnp.float32) for name in ("mean", "var", "bias")}
    v["kernel"] = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    folded = fold_batch_norm(fn, v, image(5, 4))
    compare(fn(v, image(5, 4)), fn(folded, image(5, 4)), 1e-5)
    assert not folded["mean"].any()
    np.testing.assert_allclose(folded["var"], (1 - EPS) * count, rtol=1e-6)


def test_a_mean_and_a_variance_that_are_read_unlike_are_no_norm():
    def fn(v, x):
        return (x @ v["kernel"] - v["mean"][None]) / jnp.sqrt(v["var"] / 0.5 + EPS)[None]

    v = {name: jnp.ones(3) for name in ("mean", "var")} | {"kernel": jnp.ones((4, 3))}
    with pytest.raises(FoldError, match="no BatchNorm to fold"):
        fold_batch_norm(fn, v, image(5, 4))


@pytest.mark.parametrize("name", WITH_NORM)
def test_zoo_networks_keep_their_function(name):
    network = build(name)
    before, after = named_leaves(network.params), check(network.fn, network.params, *network.inputs)
    for path, leaf in after.items():
        if path.endswith("/var"):
            assert (leaf != before[path]).all(), f"{path} was left live"


def test_the_list_of_networks_with_norms_is_complete():
    leaves = {name: named_leaves(build().params) for name, build in networks().items()}
    assert {n for n, paths in leaves.items() if any(p.endswith("/var") for p in paths)} == {
        *WITH_NORM
    }


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "mobilenetv2_nnx", "efficientnet"])
def test_every_norm_behind_a_convolution_is_idle(name):
    network = build(name)
    after = named_leaves(fold_batch_norm(network.fn, network.params, *network.inputs))
    norms = [path.rpartition("/")[0].partition("/")[2] for path in after if path.endswith("/var")]
    assert norms
    for norm in norms:
        assert idle(after, norm, 1e-5), norm


class Layer(nn.Module):
    """One layer, then a norm."""

    layer: Any
    norm: Any = nn.BatchNorm(use_running_average=True, epsilon=EPS)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(self.norm(self.layer(x)))


LAYERS = {
    "conv": nn.Conv(5, (3, 3)),
    "conv without bias": nn.Conv(5, (3, 3), use_bias=False),
    "grouped": nn.Conv(6, (3, 3), feature_group_count=2),
    "depthwise": nn.Conv(4, (3, 3), feature_group_count=4),
    "depthwise multiplier": nn.Conv(8, (3, 3), feature_group_count=4),
    "strided": nn.Conv(5, (2, 2), strides=2, padding="VALID"),
    "transposed": nn.ConvTranspose(5, (3, 3), strides=(2, 2)),
    "transposed kernel": nn.ConvTranspose(5, (3, 3), strides=(2, 2), transpose_kernel=True),
    "dense": nn.Dense(5),
    "dense without bias": nn.Dense(5, use_bias=False),
    "several features": nn.DenseGeneral((2, 3)),
    "several axes": nn.DenseGeneral(5, axis=(-2, -1)),
    "local": nn.ConvLocal(5, (3, 3)),
    "einsum": nn.Einsum((4, 5), "...i,ij->...j"),
}
NORMS = {
    "full": {},
    "without scale": {"use_scale": False},
    "without bias": {"use_bias": False},
    "bare": {"use_scale": False, "use_bias": False},
}


@pytest.mark.parametrize("options", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers_absorb_the_norm(layer, options):
    norm = nn.BatchNorm(use_running_average=True, epsilon=EPS, **options)
    module, x = Layer(layer, norm), image(2, 6, 6, 4)
    after = check(module.apply, linen(module, x), x)
    assert idle(after, "norm")
    has_bias = "params/norm/bias" in after or "params/layer/bias" in after
    assert (np.asarray(after["batch_stats/norm/mean"]) == 0).all() == has_bias


def test_the_kernel_takes_exactly_the_gain():
    module, x = Layer(nn.Conv(5, (3, 3))), image(1, 6, 6, 4)
    variables = linen(module, x)
    old = {path: np.asarray(leaf) for path, leaf in named_leaves(variables).items()}
    new = named_leaves(fold_batch_norm(module.apply, variables, x))
    deviation = np.sqrt(old["batch_stats/norm/var"] + np.float32(EPS))
    gain = old["params/norm/scale"] / deviation
    assert (gain < 0).any(), "the test needs a negative gamma"
    shifted = old["params/norm/bias"] - old["batch_stats/norm/mean"] * gain
    np.testing.assert_allclose(
        new["params/layer/kernel"], old["params/layer/kernel"] * gain, rtol=1e-6
    )
    np.testing.assert_allclose(new["params/layer/bias"], old["params/layer/bias"] * gain, rtol=1e-6)
    np.testing.assert_allclose(new["params/norm/bias"], shifted, rtol=1e-5)


def test_zero_gamma_zeroes_the_kernel():
    module, x = Layer(nn.Conv(5, (3, 3))), image(1, 6, 6, 4)
    variables = linen(module, x)
    variables["params"]["norm"]["scale"] = jnp.array([0.0, 1.0, -1.0, 0.0, 2.0])
    after = check(module.apply, variables, x)
    assert not after["params/layer/kernel"][..., 0].any()
    assert np.isfinite(after["params/norm/bias"]).all()


def plus_shift(x, m, v, s, b):
    return x * (s * jax.lax.rsqrt(v + EPS)) + (b - m * s * jax.lax.rsqrt(v + EPS))


SPELLINGS = {
    "textbook": lambda x, m, v, s, b: (x - m) / jnp.sqrt(v + EPS) * s + b,
    "scale with root": lambda x, m, v, s, b: (x - m) * (jax.lax.rsqrt(v + EPS) * s) + b,
    "root with scale": lambda x, m, v, s, b: (x - m) * (s / jnp.sqrt(v + EPS)) + b,
    "scale first": lambda x, m, v, s, b: s * (x - m) * jax.lax.rsqrt(v + EPS) + b,
    "mean negated": lambda x, m, v, s, b: b + s * ((-m + x) / jnp.sqrt(EPS + v)),
    "shift at once": plus_shift,
    "factor by factor": lambda x, m, v, s, b: (
        x * s / jnp.sqrt(v + EPS) - m * s / jnp.sqrt(v + EPS) + b
    ),
    "power": lambda x, m, v, s, b: (x - m) * (v + EPS) ** -0.5 * s + b,
    "power of half": lambda x, m, v, s, b: (x - m) / (v + EPS) ** 0.5 * s + b,
    "inverse": lambda x, m, v, s, b: (x - m) * (1.0 / jnp.sqrt(v + EPS)) * s + b,
    "under jit": jax.jit(lambda x, m, v, s, b: (x - m) / jnp.sqrt(v + EPS) * s + b),
    "under remat": jax.checkpoint(lambda x, m, v, s, b: (x - m) / jnp.sqrt(v + EPS) * s + b),
}


def raw(shape: tuple[int, ...], **more: tuple[int, ...]) -> dict[str, jax.Array]:
    names = dict.fromkeys(("mean", "var", "scale", "bias"), shape)
    shapes = {"kernel": (3, 4), **names, **more}
    return draw("raw", {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()})


@pytest.mark.parametrize("norm", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings(norm):
    def fn(p, x):
        m, v, s, b = (p[name][None] for name in ("mean", "var", "scale", "bias"))
        return jnp.tanh(norm(x @ p["kernel"], m, v, s, b))

    after = check(fn, raw((4,)), image(5, 3))
    assert idle({f"n/{path}": leaf for path, leaf in after.items()}, "n")


def test_channels_first_and_kept_dimensions():
    def fn(p, x):
        y = jax.lax.conv(x, p["weight"], (1, 1), "SAME") + p["conv_bias"]
        root = jax.lax.rsqrt(p["var"] + EPS)
        return jax.nn.relu((y - p["mean"]) * root * p["scale"] + p["bias"])

    variables = raw((1, 4, 1, 1), weight=(4, 2, 3, 3), conv_bias=(1, 4, 1, 1))
    after = check(fn, variables, image(2, 2, 5, 5))
    assert idle({f"n/{path}": leaf for path, leaf in after.items()}, "n")


def test_weight_seen_through_views():
    def fn(p, x):
        kernel = jnp.flip(p["kernel"].reshape(2, 3, 2).transpose(0, 2, 1).reshape(4, 3), 0).T
        return norm(x @ kernel, p)

    after = check(fn, raw((4,), kernel=(2, 6)), image(5, 3))
    assert (after["scale"] == 1).all()


def norm(x: jax.Array, p: dict[str, jax.Array]) -> jax.Array:
    m, v, s, b = (p[name][None] for name in ("mean", "var", "scale", "bias"))
    return (x - m) * (jax.lax.rsqrt(v + EPS) * s) + b


AFFINE = {
    "before the layer": lambda p, x: norm(x, p) @ p["kernel"].T,
    "behind a concatenation": lambda p, x: norm(
        jnp.concatenate([x @ p["kernel"][:, :2], x @ p["kernel"][:, 2:]], 1), p
    ),
    "applied twice": lambda p, x: norm(jnp.tanh(norm(x @ p["kernel"], p)), p),
    "layer's output read twice": lambda p, x: (y := x @ p["kernel"]) + norm(y, p),
    "kernel used twice": lambda p, x: norm(x @ p["kernel"], p) @ p["kernel"].T,
    "constant in between": lambda p, x: norm(x @ p["kernel"] + 1.0, p),
    "kernel of two leaves": lambda p, x: norm(x @ (p["kernel"] * p["factor"]), p),
    "shared bias": lambda p, x: norm(x @ p["kernel"] + p["shared"], p) + p["shared"],
    "one bias for all": lambda p, x: norm(x @ p["kernel"] + p["single"], p),
}


@pytest.mark.parametrize("fn", AFFINE.values(), ids=AFFINE)
def test_other_norms_become_affine(fn):
    shape = (4,)
    variables = raw(shape, factor=(1, 1), shared=(1, 4), single=())
    x = image(5, 4) if fn is AFFINE["before the layer"] else image(5, 3)
    if fn is AFFINE["before the layer"]:
        variables["kernel"] = variables["kernel"].T[:, :2].T
    after = check(fn, variables, x)
    deviation = np.sqrt(np.asarray(variables["var"]) + np.float32(EPS))
    np.testing.assert_allclose(after["scale"], variables["scale"] / deviation, rtol=1e-6)
    np.testing.assert_array_equal(after["kernel"], variables["kernel"])
    assert not after["mean"].any()


LIVE = {
    "leaf also returned": lambda p, x: (norm(x @ p["kernel"], p), p["mean"]),
    "leaf also read": lambda p, x: norm(x @ p["kernel"], p) * p["var"][None],
    "centred value also read": lambda p, x: (
        (y := x @ p["kernel"] - p["mean"][None]) * jax.lax.rsqrt(p["var"] + EPS)[None],
        jnp.tanh(y),
    ),
    "variance of two leaves": lambda p, x: (
        (x @ p["kernel"] - p["mean"][None]) * jax.lax.rsqrt(p["var"] + p["bias"] ** 2 + EPS)[None]
    ),
    "misaligned": lambda p, x: (
        (x @ p["kernel"] - p["mean"][None]) * jax.lax.rsqrt(p["var"][::-1] + EPS)[None]
    ),
}


@pytest.mark.parametrize("fn", LIVE.values(), ids=LIVE)
def test_what_is_not_closed_stays_live(fn):
    with pytest.raises(FoldError, match="no BatchNorm to fold"):
        fold_batch_norm(fn, raw((4,)), image(5, 3))


def test_a_live_norm_does_not_stop_the_others():
    def fn(p, x):
        y = norm(x @ p["one"]["kernel"], p["one"])
        return norm(y @ p["two"]["kernel"], p["two"]), p["one"]["mean"]

    variables = {"one": raw((4,)), "two": raw((4,), kernel=(4, 4))}
    after = check(fn, variables, image(5, 3))
    np.testing.assert_array_equal(after["one/kernel"], variables["one"]["kernel"])
    assert idle(after, "two")


def test_two_norms_on_one_tensor_become_affine():
    def fn(p, x):
        y = x @ p["one"]["kernel"]
        return norm(y, p["one"]) * norm(y, p["two"])

    after = check(fn, {"one": raw((4,)), "two": raw((4,))}, image(5, 3))
    assert not after["one/mean"].any()
    assert not after["two/mean"].any()


def test_norms_in_a_row_fold_the_first():
    def fn(p, x):
        return norm(norm(x @ p["one"]["kernel"], p["one"]), p["two"])

    after = check(fn, {"one": raw((4,)), "two": raw((4,))}, image(5, 3))
    assert idle(after, "one")
    assert not after["two/mean"].any()


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(4)(x)
        y = nn.BatchNorm(use_running_average=True, epsilon=EPS)(y)
        return nn.relu(y), None


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "batch_stats": 0}
        block = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)
        return block(name="block")(x, None)[0]


def test_stacked_norms_inside_scan():
    module, x = Scanned(), image(2, 4)
    after = check(module.apply, linen(module, x), x)
    assert idle(after, "BatchNorm_0")
    assert after["params/block/Dense_0/kernel"].shape == (3, 4, 4)


def test_one_norm_for_all_steps_of_a_scan():
    def fn(p, x):
        step = lambda y, _: (nn.relu(norm(y @ p["kernel"], p)), None)  # noqa: E731
        return jax.lax.scan(step, x, length=3)[0]

    after = check(fn, raw((4,), kernel=(4, 4)), image(5, 4))
    assert (after["scale"] == 1).all()


def test_a_stacked_norm_on_one_kernel_becomes_affine():
    def fn(p, x):
        step = lambda y, n: (nn.relu(norm(y @ p["kernel"], n)), None)  # noqa: E731
        return jax.lax.scan(step, x, p["norms"])[0]

    norms = jax.tree.map(lambda *rows: jnp.stack(rows), raw((4,)), raw((4,)))
    del norms["kernel"]
    variables = {"kernel": raw((4,), kernel=(4, 4))["kernel"], "norms": norms}
    after = check(fn, variables, image(5, 4))
    np.testing.assert_array_equal(after["kernel"], variables["kernel"])
    assert not after["norms/mean"].any()


def test_vmapped_dense_layers():
    module = nn.vmap(
        Layer, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}
    )(nn.Dense(5))
    x = image(3, 2, 4)
    after = check(module.apply, linen(module, x), x)
    assert idle(after, "norm")


def test_branches():
    def fn(p, x):
        return jax.lax.cond(x.sum() > 0, lambda: norm(x @ p["kernel"], p), lambda: x @ p["other"])

    after = check(fn, raw((4,), other=(3, 4)), image(5, 3))
    assert (after["scale"] == 1).all()
    check(fn, raw((4,), other=(3, 4)), -image(5, 3))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Conv(4, 5, (3, 3), rngs=rngs), nnx.BatchNorm(5, rngs=rngs)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return nnx.relu(x)


def nnx_parts(training: bool = False):
    model = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    model.train() if training else model.eval()
    graph, abstract = nnx.split(model)
    state = draw("net", abstract)
    return lambda s, x: nnx.merge(graph, s)(x), state


def test_nnx_state_and_int_keys():
    fn, state = nnx_parts()
    after = check(fn, state, image(2, 6, 6, 4))
    assert idle(after, "layers/1", 1e-5)
    pure = nnx.to_pure_dict(state)
    folded = fold_batch_norm(fn, pure, image(2, 6, 6, 4))
    np.testing.assert_array_equal(folded["layers"][0]["kernel"], after["layers/0/kernel"])


def test_frozen_and_boxed_trees_keep_their_structure():
    module, x = Layer(nn.Conv(5, (3, 3))), image(1, 6, 6, 4)
    variables = linen(module, x)
    plain = fold_batch_norm(module.apply, variables, x)
    boxed = {
        **variables,
        "params": jax.tree.map(
            lambda leaf: nn.Partitioned(leaf, (None,) * leaf.ndim), variables["params"]
        ),
    }
    for tree in (freeze(variables), boxed):
        folded = fold_batch_norm(module.apply, tree, x)
        assert jax.tree.structure(folded) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(folded), jax.tree.leaves(plain))


def test_jit_and_abstract_inputs_give_the_same_and_nothing_is_mutated():
    module, x = Layer(nn.Conv(5, (3, 3))), image(1, 6, 6, 4)
    variables = linen(module, x)
    copy = jax.tree.map(np.array, variables)
    eager = fold_batch_norm(module.apply, variables, jax.ShapeDtypeStruct((9, 4, 4, 4), x.dtype))
    jitted = jax.jit(lambda v: fold_batch_norm(module.apply, v, x))(variables)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)
    jax.tree.map(np.testing.assert_array_equal, variables, copy)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_leaves_keep_their_dtype(dtype):
    layer = nn.Conv(5, (3, 3), dtype=dtype, param_dtype=dtype)
    norm = nn.BatchNorm(
        use_running_average=True,
        epsilon=EPS,
        dtype=dtype,
        param_dtype=dtype,
        force_float32_reductions=False,
    )
    module, x = Layer(layer, norm), image(1, 6, 6, 4).astype(dtype)
    variables = linen(module, x)
    folded = fold_batch_norm(module.apply, variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(folded)} == {jnp.dtype(dtype)}
    one, two = (jnp.float32(module.apply(v, x)) for v in (variables, folded))
    np.testing.assert_allclose(
        two, one, atol=8 * float(jnp.finfo(dtype).eps) * float(jnp.abs(one).max())
    )


@pytest.mark.parametrize("eps", [1e-3, 1e-5, 1.001e-5, 1e-2, 0.3, 0.7, 1e-8, 0.0])
def test_the_idle_norm_has_gain_exactly_one(eps):
    def fn(p, x):
        root = jax.lax.rsqrt(p["var"] + eps)
        return (x @ p["kernel"] - p["mean"][None]) * root[None] * p["scale"][None]

    folded = fold_batch_norm(fn, raw((4,)), image(5, 3))
    roots = jax.jit(lambda v: jax.lax.rsqrt(v + eps))(folded["var"])
    np.testing.assert_array_equal(roots, 1.0)


def test_shardings_stay():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    module, x = Layer(nn.Conv(8, (3, 3))), image(1, 6, 6, 4)
    variables = linen(module, x)
    plain = named_leaves(fold_batch_norm(module.apply, variables, x))

    def place(leaf: jax.Array) -> jax.Array:
        axes = (*(None,) * (leaf.ndim - 1), "b")
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    placed = jax.tree.map(place, variables)
    for path, leaf in named_leaves(fold_batch_norm(module.apply, placed, x)).items():
        assert leaf.sharding == named_leaves(placed)[path].sharding, path
        np.testing.assert_array_equal(leaf, plain[path])


def test_training_mode_is_refused():
    module = Layer(nn.Conv(5, (3, 3)), nn.BatchNorm(use_running_average=False))
    x = image(2, 6, 6, 4)
    variables = linen(Layer(nn.Conv(5, (3, 3))), x)
    train = lambda v, x: module.apply(v, x, mutable=["batch_stats"])  # noqa: E731
    with pytest.raises(FoldError, match=r"'norm'.*use_running_average=True.*model\.eval\(\)"):
        fold_batch_norm(train, variables, x)
    with pytest.raises(FoldError, match="statistics of the batch"):
        fold_batch_norm(lambda v, x: train(v, x)[0], variables, x)
    fn, state = nnx_parts(training=True)
    with pytest.raises(FoldError, match=r"'layers/1'.*model\.eval\(\)"):
        fold_batch_norm(fn, state, x)


def test_a_norm_that_the_function_does_not_use_is_left_alone():
    variables = {"used": raw((4,)), "aside": raw((4,))}
    after = check(lambda p, x: norm(x @ p["used"]["kernel"], p["used"]), variables, image(5, 3))
    np.testing.assert_array_equal(after["aside/var"], variables["aside"]["var"])


@pytest.mark.parametrize("name", ["mlp", "group_norm"])
def test_no_norm_is_an_error_that_says_what_was_looked_for(name):
    network = build(name)
    text = r"looked for \(x - mean\) \* rsqrt\(var \+ eps\).*none of the \d+ leaves is called mean"
    with pytest.raises(FoldError, match=text):
        fold_batch_norm(network.fn, network.params, *network.inputs)


def test_statistics_captured_by_closure_are_named_as_missing():
    module, x = Layer(nn.Conv(5, (3, 3))), image(1, 6, 6, 4)
    variables = linen(module, x)
    fn = lambda p, x: module.apply({**variables, "params": p}, x)  # noqa: E731
    with pytest.raises(FoldError, match="pass all variables"):
        fold_batch_norm(fn, variables["params"], x)


def test_integer_weights_leave_the_norm_affine():
    def fn(p, x):
        return norm(x @ p["kernel"].astype(x.dtype), p)

    variables = {**raw((4,)), "kernel": jnp.arange(12, dtype=jnp.int8).reshape(3, 4)}
    folded = fold_batch_norm(fn, variables, image(5, 3))
    assert folded["kernel"].dtype == jnp.int8
    compare(fn(variables, image(5, 3)), fn(folded, image(5, 3)), 1e-5)
    assert not folded["mean"].any()


def test_large_variances_and_replaced_leaves_fold_to_finite_weights():
    module, x = Layer(nn.Conv(5, (3, 3))), image(1, 6, 6, 4)
    variables = linen(module, x)
    extreme = jnp.array([0.0, 1e-12, 1e12, 1e30, 1.0])
    after = check(module.apply, replace_leaves(variables, {"batch_stats/norm/var": extreme}), x)
    assert all(np.isfinite(leaf).all() for leaf in after.values())
