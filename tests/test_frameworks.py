"""The whole chain in every framework: what a user passes in comes back in the same wrapping."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import NamedSharding, PartitionSpec

import flaxcle as fc
from flaxcle.errors import FoldError, TraceError
from flaxcle.paths import map_named, named_leaves
from zoo.base import draw

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 5, 3)), jnp.float32)
CONFIG = fc.QuantConfig()


class Case(NamedTuple):
    """A network, its trained-looking params, and a legal chain."""

    fn: Callable[..., Any]
    params: Any
    chain: tuple[Any, ...]


class Linen(nn.Module):
    kernel_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(6, (3, 3), use_bias=False, kernel_init=self.kernel_init, name="stem")(x)
        x = nn.relu6(nn.BatchNorm(use_running_average=True, name="norm")(x))
        x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=6, name="depthwise")(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


CHAIN = ("stem", "norm", "depthwise", "head")


def linen(wrap: Callable[..., Any] | None = None) -> Case:
    init = nn.initializers.lecun_normal()
    names = (None, None, None, "model")
    net = Linen(wrap(init, names) if wrap else init)
    shapes = jax.eval_shape(net.init, jax.random.key(0), X)
    return Case(net.apply, draw("linen", shapes), CHAIN)


def frozen() -> Case:
    fn, params, chain = linen()
    return Case(fn, freeze(params), chain)


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(3, 6, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.depthwise = nnx.Conv(6, 6, (3, 3), feature_group_count=6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.heads = nnx.List([nnx.Linear(6, 4, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu6(self.norm(self.stem(x)))
        x = self.dropout(nnx.relu(self.depthwise(x)))
        return self.heads[0](x.mean((1, 2)))


NNX_CHAIN = ("stem", "norm", "depthwise", "heads/0")


def nnx_net() -> Net:
    """A module in inference mode with a drawn state, random keys and all."""
    model = Net(nnx.Rngs(0))
    model.eval()
    model.stem.kernel.set_metadata("mark", "kept")
    weights = nnx.state(model, (nnx.Param, nnx.BatchStat))
    nnx.update(model, draw("nnx", jax.eval_shape(lambda: weights)))
    return model


def nnx_state() -> Case:
    graphdef, state = nnx.split(nnx_net())
    return Case(lambda s, x: nnx.merge(graphdef, s)(x), state, NNX_CHAIN)


def nnx_pure_dict() -> Case:
    fn, state, chain = nnx_state()
    return Case(fn, nnx.to_pure_dict(state), chain)


def nnx_module() -> Case:
    return Case(lambda model, x: model(x), nnx_net(), NNX_CHAIN)


def nnx_states() -> Case:
    graphdef, params, stats, rest = nnx.split(nnx_net(), nnx.Param, nnx.BatchStat, ...)
    fn = lambda v, x: nnx.merge(graphdef, v["params"], v["batch_stats"], rest)(x)  # noqa: E731
    return Case(fn, {"params": params, "batch_stats": stats}, NNX_CHAIN)


class Equinox(eqx.Module):
    """Channels first; the activation is a leaf that is no array."""

    stem: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    depthwise: eqx.nn.Conv2d
    head: eqx.nn.Linear
    activation: Callable[..., Any]
    strides: int = eqx.field(static=True)

    def __init__(self, mode: str, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.stem = eqx.nn.Conv2d(3, 6, 3, use_bias=False, key=keys[0])
        self.norm = eqx.nn.BatchNorm(6, "batch", mode=mode)
        self.depthwise = eqx.nn.Conv2d(6, 6, 3, groups=6, key=keys[1])
        self.head = eqx.nn.Linear(6, 4, key=keys[2])
        self.activation = jax.nn.relu
        self.strides = 2

    def __call__(self, x: jax.Array, state: eqx.nn.State) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.norm(self.stem(jnp.moveaxis(x, -1, 0)), state)
        x = self.activation(self.depthwise(jax.nn.relu6(x)))[:, :: self.strides]
        return self.head(x.mean((1, 2))), state


def equinox_model(mode: str) -> dict[str, Any]:
    """A model and its state after one step of training."""
    model, state = eqx.nn.make_with_state(Equinox)(mode, jax.random.key(0))
    train = jax.vmap(model, in_axes=(0, None), out_axes=(0, None), axis_name="batch")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, state = train(X, state)
    return {"params": eqx.nn.inference_mode(model), "state": state}


def equinox(mode: str) -> Case:
    arrays, rest = eqx.partition(equinox_model(mode), eqx.is_inexact_array)

    def fn(arrays: Any, x: jax.Array) -> jax.Array:
        both = eqx.combine(arrays, rest)
        one = lambda x: both["params"](x, both["state"])[0]  # noqa: E731
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return jax.vmap(one, axis_name="batch")(x)

    return Case(fn, arrays, ("depthwise", "head"))  # the state has no names to declare


def haiku() -> Case:
    def net(x: jax.Array, training: bool) -> jax.Array:
        x = hk.Conv2D(6, 3, with_bias=False, name="stem")(x)
        x = jax.nn.relu6(hk.BatchNorm(True, True, 0.9, name="norm")(x, is_training=training))
        x = jax.nn.relu(hk.DepthwiseConv2D(1, 3, name="depthwise")(x))
        return hk.nets.MLP([4], name="mlp")(x.mean((1, 2)))

    model = hk.without_apply_rng(hk.transform_with_state(net))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, state = model.init(jax.random.key(0), X, training=True)
        _, state = model.apply(params, state, X, training=True)

    def fn(variables: Any, x: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return model.apply(variables["params"], variables["state"], x, training=False)[0]

    chain = ("stem", "norm", "depthwise", "mlp/~/linear_0")
    return Case(fn, {"params": params, "state": state}, chain)


@partial(jax.tree_util.register_dataclass, data_fields=("w", "b"), meta_fields=("groups",))
@dataclass
class Layer:
    w: Any
    b: Any
    groups: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, self.w, (1, 1), "SAME", dimension_numbers=dims, feature_group_count=self.groups
        )
        return y + self.b[None, None, None]


def raw() -> Case:
    vector = jax.ShapeDtypeStruct((6,), jnp.float32)
    kernel = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    shapes = {
        "layers": [Layer(kernel(3, 3, 3, 6), vector), Layer(kernel(3, 3, 1, 6), vector, 6)],
        "norm": dict.fromkeys(("mean", "var", "scale", "bias"), vector),
        "head": (kernel(6, 4),),
    }

    def fn(params: Any, x: jax.Array) -> jax.Array:
        first, second = params["layers"]
        norm = {name: leaf[None, None, None] for name, leaf in params["norm"].items()}
        root = jax.lax.rsqrt(norm["var"] + 1e-3)
        x = (first(x) - norm["mean"]) * root * norm["scale"] + norm["bias"]
        return jax.nn.relu(second(jax.nn.relu6(x))).mean((1, 2)) @ params["head"][0]

    return Case(fn, draw("raw", shapes), ("layers/0", "norm", "layers/1", "head/0"))


CASES: dict[str, Callable[[], Case]] = {
    "Linen dict": linen,
    "Linen FrozenDict": frozen,
    "Linen Partitioned": partial(linen, nn.with_partitioning),
    "Linen LogicallyPartitioned": partial(linen, nn.with_logical_partitioning),
    "nnx.State": nnx_state,
    "nnx states by kind": nnx_states,
    "nnx pure dict": nnx_pure_dict,
    "nnx.Module": nnx_module,
    "Equinox, running averages": partial(equinox, "ema"),
    "Equinox, debiased averages": partial(equinox, "batch"),
    "Haiku": haiku,
    "raw": raw,
}
WITH_KEYS = ("nnx.State", "nnx pure dict", "nnx.Module")
build = cache(lambda name: CASES[name]())


@cache
def exposed(name: str) -> tuple[Callable[..., Any], Any, fc.Spec]:
    """Function and params after folding, with a leaf for each clip, and the spec that is found."""
    fn, params, _ = build(name)
    fn, params = fc.expose_clips(fn, fc.fold_batch_norm(fn, params, X), X)
    return fn, params, fc.find_spec(fn, params, X)


def plain(leaf: jax.Array) -> jax.Array:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def same_wrapping(one: Any, two: Any) -> None:
    """Structure, metadata of boxes included, dtypes and shapes; what is no float is the same."""
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for (path, a), b in zip(named_leaves(one).items(), named_leaves(two).values(), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        if not jnp.issubdtype(a.dtype, jnp.floating):
            assert np.array_equal(plain(a), plain(b)), path


def changed(before: Any, after: Any) -> set[str]:
    pairs = zip(named_leaves(before).items(), named_leaves(after).values(), strict=True)
    return {path for (path, a), b in pairs if not np.array_equal(plain(a), plain(b))}


@pytest.mark.parametrize("name", CASES)
def test_folding_and_pruning_keep_function_and_wrapping(name):
    fn, params, _ = build(name)
    folded = fc.fold_batch_norm(fn, params, X)
    assert fc.verify(fn, params, folded, X)
    assert len(changed(params, folded)) >= 3
    same_wrapping(folded, params)
    same_wrapping(fc.prune_dead_channels(fn, folded, X), params)


@pytest.mark.parametrize("name", CASES)
def test_scales_keep_function_and_wrapping(name):
    fn, params, spec = exposed(name)
    scales = fc.Scales({group.name: jnp.full(group.shape, 3.0) for group in spec.groups})
    moved = fc.apply_scales(params, scales, spec)
    assert fc.verify(fn, params, moved, X).identical
    assert len(changed(params, moved)) >= 5
    same_wrapping(moved, params)


@pytest.mark.parametrize("name", CASES)
def test_a_chain_of_module_names_is_a_legal_spec(name):
    fn, params, _ = exposed(name)
    declared = fc.Spec.from_pairs([build(name).chain], params)
    fc.check_spec(fn, params, declared, X)
    kernels = [element for element in build(name).chain if element != "norm"]
    assert declared.scales == 6 * (len(kernels) - 1)


@pytest.mark.parametrize("name", ["Linen Partitioned", "nnx.State", "Equinox, running averages"])
def test_equalize_compiles(name):
    _, params, spec = exposed(name)
    eager = fc.equalize(params, spec, power_of_two=True)
    compiled = jax.jit(partial(fc.equalize, spec=spec, power_of_two=True))(params)
    same_wrapping(compiled, params)
    assert not changed(compiled, eager)
    assert changed(compiled, params)


def test_int8_runs_and_biases_are_corrected_in_boxes():
    fn, params, _ = exposed("Linen LogicallyPartitioned")
    corrected = fc.correct_bias(fn, params, [X], CONFIG)
    same_wrapping(corrected, params)
    quantized = jax.jit(fc.fake_quant(fn, CONFIG, fc.calibrate(fn, params, [X], CONFIG)))
    assert fc.sqnr(jax.jit(fn)(params, X), quantized(corrected, X)) > 20


@pytest.mark.parametrize("name", WITH_KEYS)
def test_random_keys_are_there_to_pass_through(name):
    leaves = named_leaves(build(name).params)
    assert jnp.issubdtype(leaves["dropout/rngs/key"].dtype, jax.dtypes.prng_key)


def test_variables_of_nnx_keep_their_type_and_metadata():
    _, params, spec = exposed("nnx.State")
    state = fc.equalize(params, spec)["params"]
    assert type(state["stem"]["kernel"]) is nnx.Param
    assert type(state["norm"]["mean"]) is nnx.BatchStat
    assert state["stem"]["kernel"].get_metadata("mark") == "kept"


def test_boxes_keep_their_names():
    _, params, spec = exposed("Linen LogicallyPartitioned")
    box = fc.equalize(params, spec)["params"]["stem"]["kernel"]
    assert isinstance(box, nn.LogicallyPartitioned)
    assert box.names == (None, None, None, "model")


def test_equalize_inside_nnx_jit_updates_the_module():
    model = nnx_net()
    graphdef, shared = nnx.split(model)
    state = jax.tree.map(jnp.copy, shared)  # else the model's own variables, which change below
    fn = lambda state, x: nnx.merge(graphdef, state)(x)  # noqa: E731
    spec = fc.Spec.from_pairs([("depthwise", "heads/0")], state)
    key = plain(state["dropout"]["rngs"]["key"][...])

    @nnx.jit
    def equalize(model: Net) -> None:
        nnx.update(model, fc.equalize(nnx.state(model), spec))

    equalize(model)
    assert changed(state, nnx.state(model)) == {
        "depthwise/bias",
        "depthwise/kernel",
        "heads/0/kernel",
    }
    assert fc.verify(fn, state, nnx.state(model), X)
    assert np.array_equal(plain(model.dropout.rngs.key[...]), key)


def test_partitioned_leaves_keep_their_sharding():
    _, params, spec = exposed("Linen Partitioned")
    mesh = jax.make_mesh((2,), ("model",), devices=jax.devices()[:2])
    split = NamedSharding(mesh, PartitionSpec(None, None, None, "model"))
    whole = NamedSharding(mesh, PartitionSpec())
    place = lambda path: split if path == "params/stem/kernel" else whole  # noqa: E731
    placed = map_named(lambda path, leaf: jax.device_put(leaf, place(path)), params)
    for path, leaf in named_leaves(fc.equalize(placed, spec)).items():
        assert leaf.sharding.is_equivalent_to(place(path), leaf.ndim), path


def test_a_whole_equinox_model_is_equalized_but_not_traced():
    model = equinox_model("ema")
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    spec = fc.Spec.from_pairs([("depthwise", "head")], arrays)
    whole = eqx.filter_jit(partial(fc.equalize, spec=spec, power_of_two=True))(model)
    parts = eqx.combine(fc.equalize(arrays, spec, power_of_two=True), rest)
    assert eqx.tree_equal(whole, parts)
    assert not eqx.tree_equal(whole, model)
    for call in (fc.find_spec, fc.calibrate):
        with pytest.raises(TraceError, match=r"eqx\.partition\(model, eqx\.is_inexact_array\)"):
            call(lambda model, x: x, model, *([[X], CONFIG] if call is fc.calibrate else [X]))


def test_a_leaf_that_is_no_array_is_named():
    with pytest.raises(TraceError) as error:
        fc.verify(lambda p, x: x, {"a": X, "act": "relu"}, {"a": X, "act": "relu"}, X)
    assert "params hold a leaf that is no array: 'act' is a str" in str(error.value)


def test_an_nnx_module_in_training_mode_is_refused():
    model = nnx_net()
    model.train()
    graphdef, state = nnx.split(model)
    with pytest.raises(FoldError, match=r"model\.eval\(\) before nnx\.split"):
        fc.fold_batch_norm(lambda state, x: nnx.merge(graphdef, state)(x), state, X)
