"""`expose_clips`: the same bits before any scaling, the same function after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict, freeze
from jax import lax

from by_hand import apply_table, random_log2, widened
from flaxcle import Spec, expose_clips, find_spec
from flaxcle.errors import TraceError
from flaxcle.paths import named_leaves
from zoo.base import draw, image

X = 4 * image(8, 3)
SHAPES = {"a": (3, 4), "b": (4,), "c": (4, 2)}


def drawn(**shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    return draw("clips", {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})


PARAMS = drawn(**SHAPES)


def network(clip: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    def fn(p, x):
        return clip(x @ p["a"] + p["b"][None]) @ p["c"]

    return fn


def bounds(params: Any) -> dict[str, list[Any]]:
    """The leaves of the clips, by path."""
    named = {path: np.asarray(leaf).tolist() for path, leaf in named_leaves(params).items()}
    return {path: leaf for path, leaf in named.items() if path.startswith("clips/")}


def check(fn: Any, params: Any, *inputs: Any, scales: int) -> tuple[Any, Any, Spec]:
    """Exposes, compares bits, and moves every scale that is found: bounds must take part."""
    exposed, new = expose_clips(fn, params, *inputs)
    before, after = fn(params, *inputs), exposed(new, *inputs)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda x: x.dtype, before)
    spec = find_spec(exposed, new, *inputs)
    assert spec.scales == scales, str(spec)
    scaled = {site.path for group in spec.groups for site in group.sites}
    assert set(bounds(new)) <= scaled
    assert_same(exposed, new, spec, *inputs)
    return exposed, new, spec


def assert_same(fn: Any, params: Any, spec: Spec, *inputs: Any) -> None:
    """Random scales leave the function, in float64."""
    moved = apply_table(widened(params), spec, random_log2(spec))
    with jax.enable_x64(True):
        wide = jax.tree.map(jnp.asarray, (widened(params), moved, widened(inputs)))
        run = jax.jit(fn)
        before, after = (jax.tree.leaves(run(tree, *wide[2])) for tree in wide[:2])
        for one, two in zip(before, after, strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-9, atol=1e-9 * np.abs(one).max())


ONE_BOUND = {
    "relu6": jax.nn.relu6,
    "clip_to_six": lambda h: jnp.clip(h, 0.0, 6.0),
    "clamp_to_six": lambda h: lax.clamp(jnp.zeros_like(h), h, jnp.full_like(h, 6.0)),
    "minimum_first": lambda h: jax.nn.relu(jnp.minimum(6.0, h)),
    "jitted": jax.jit(jax.nn.relu6),
    "remat": jax.checkpoint(jax.nn.relu6),
    "broadcast_bound": lambda h: jnp.minimum(jax.nn.relu(h), jnp.full((1, 4), 6.0, h.dtype)),
}
TWO_BOUNDS = {
    "clip": lambda h: jnp.clip(h, -1.0, 2.0),
    "clamp": lambda h: lax.clamp(jnp.asarray(-1.0, h.dtype), h, jnp.asarray(2.0, h.dtype)),
    "upper_first": lambda h: jnp.maximum(jnp.minimum(h, 2.0), -1.0),
    "selected": lambda h: jnp.where(h > 2.0, 2.0, jnp.where(h < -1.0, -1.0, h)),
    "selected_below": lambda h: jnp.where((y := jnp.where(h >= -1.0, h, -1.0)) <= 2.0, y, 2.0),
}


@pytest.mark.parametrize("clip", ONE_BOUND.values(), ids=ONE_BOUND)
def test_an_upper_bound_is_one_leaf_a_channel(clip):
    _, params, _ = check(network(clip), PARAMS, X, scales=4)
    assert bounds(params) == {"clips/a/max": [6.0] * 4}


@pytest.mark.parametrize("clip", TWO_BOUNDS.values(), ids=TWO_BOUNDS)
def test_two_bounds_are_two_leaves(clip):
    _, params, _ = check(network(clip), PARAMS, X, scales=4)
    assert bounds(params) == {"clips/a/max": [2.0] * 4, "clips/a/min": [-1.0] * 4}


def test_several_clips_after_a_layer_are_numbered():
    def clip(h):
        return jax.nn.relu6(h) + jnp.minimum(0.5 * h, 3.0)

    _, params, spec = check(network(clip), PARAMS, X, scales=4)
    assert bounds(params) == {"clips/a/max": [6.0] * 4, "clips/a/max_1": [3.0] * 4}
    assert {s.path for s in spec.groups[0].producers} >= set(bounds(params))


def test_hard_tanh():
    _, params, _ = check(network(jax.nn.hard_tanh), PARAMS, X, scales=4)
    assert bounds(params) == {"clips/a/max": [1.0] * 4, "clips/a/min": [-1.0] * 4}


NOTHING = {
    "hard_swish": jax.nn.hard_swish,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "behind_tanh": lambda h: jnp.minimum(jnp.tanh(h), 0.5),
    "threshold": lambda h: jnp.where(h > 1.0, h, 0.0),
    "jump": lambda h: jnp.where(h > 1.0, 2.0, h),
    "another_value": lambda h: jnp.where(h > 1.0, 1.0, 2.0 * h),
    "relu": jax.nn.relu,
    "no_activation": lambda h: h,
    "infinite_bound": lambda h: jnp.minimum(jax.nn.relu(h), jnp.inf),
    "learned_elsewhere": lambda h: jnp.minimum(h, jnp.mean(h, axis=0, keepdims=True)),
    "not_one_number": lambda h: jnp.minimum(h, jnp.arange(1.0, 5.0, dtype=h.dtype)[None]),
}


@pytest.mark.parametrize("clip", NOTHING.values(), ids=NOTHING)
def test_without_a_clip_the_same_objects_come_back(clip):
    fn = network(clip)
    same, params = expose_clips(fn, PARAMS, X)
    assert same is fn
    assert params is PARAMS


def test_crossed_bounds_are_not_one_clip():
    """`where(h > 1, 1, max(h, 2))` jumps from 2 to 1: only the inner bound is a clip."""
    fn = network(lambda h: jnp.where(h > 1.0, 1.0, jnp.where(h < 2.0, 2.0, h)))
    exposed, params = expose_clips(fn, PARAMS, X)
    assert bounds(params) == {"clips/a/min": [2.0] * 4}
    np.testing.assert_array_equal(exposed(params, X), fn(PARAMS, X))


def test_a_clip_of_the_input_has_no_layer_and_stays():
    def fn(p, x):
        return jnp.clip(x, -1.0, 1.0) @ p["c"]

    assert expose_clips(fn, PARAMS, image(8, 4))[0] is fn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu6(nn.Conv(4, (3, 3), name="stem")(x))
        x = nn.relu6(nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x))
        return nn.Dense(2)(x.mean(axis=(1, 2)))


def linen(net: nn.Module, x: jax.Array) -> Any:
    return draw("clips", jax.eval_shape(net.init, jax.random.key(0), x))


def test_linen_variables_get_a_collection():
    x = 4 * image(2, 5, 5, 3)
    variables = linen(Net(), x)
    _, params, _ = check(Net().apply, variables, x, scales=8)
    assert bounds(params) == {
        "clips/stem/max": [6.0] * 4,
        "clips/depthwise/max": [6.0] * 4,
    }
    assert params["params"] is variables["params"]


def test_frozen_variables_stay_frozen():
    x = 4 * image(2, 5, 5, 3)
    _, params, _ = check(Net().apply, freeze(linen(Net(), x)), x, scales=8)
    assert isinstance(params, FrozenDict)
    assert set(params) == {"params", "clips"}


def test_an_nnx_state_is_wrapped():
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.first = nnx.Linear(3, 4, rngs=rngs)
            self.second = nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.second(nn.relu6(self.first(x)))

    graph, state = nnx.split(Model(nnx.Rngs(0)))

    def fn(state, x):
        return nnx.merge(graph, state)(x)

    _, params, _ = check(fn, state, 9 * X, scales=4)
    assert bounds(params) == {"clips/first/max": [6.0] * 4}
    assert params["params"] is state


def test_other_inputs_than_traced_and_shapes_alone():
    fn = network(jax.nn.relu6)
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    exposed, params = expose_clips(fn, PARAMS, shape)
    more = 4 * image(13, 3, seed=1)
    np.testing.assert_array_equal(exposed(params, more), fn(PARAMS, more))
    run = jax.jit(exposed)
    np.testing.assert_allclose(run(params, more), jax.jit(fn)(PARAMS, more), rtol=1e-6)
    one_by_one = jax.vmap(exposed, (None, 0))(params, more[:, None])
    np.testing.assert_allclose(one_by_one[:, 0], fn(PARAMS, more), rtol=1e-5, atol=1e-5)


def test_bounds_have_gradients():
    """A bound gets the gradients of what it clips, so that it can be trained or searched."""
    fn = network(jax.nn.relu6)
    exposed, params = expose_clips(fn, PARAMS, X)
    grads = jax.grad(lambda p: jnp.sum(exposed(p, X) ** 2))(params)
    clipped = (X @ PARAMS["a"] + PARAMS["b"][None] > 6).any(axis=0)
    assert clipped.any()
    np.testing.assert_array_equal(grads["clips"]["a"]["max"] != 0, clipped)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    plain = jax.grad(lambda p: jnp.sum(fn(p, X) ** 2))(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads["params"], plain)


@pytest.mark.parametrize("remat", [False, True])
def test_inside_scan_there_is_a_bound_for_each_iteration(remat):
    def body(h, p):
        return jax.nn.relu6(h @ p["u"]) @ p["v"], None

    def fn(p, x):
        return lax.scan(jax.checkpoint(body) if remat else body, x, p)[0]

    params = drawn(u=(3, 5, 4), v=(3, 4, 5))
    _, params, _ = check(fn, params, 4 * image(6, 5), scales=3 * 4 + 2 * 5)
    assert np.shape(params["clips"]["u"]["max"]) == (3, 4)


def test_channels_first_convolutions_have_bounds_on_their_channel_axis():
    def fn(p, x):
        dims = ("NCHW", "OIHW", "NCHW")
        for name in ("a", "c"):
            x = lax.conv_general_dilated(x, p[name], (1, 1), "SAME", dimension_numbers=dims)
            x = jax.nn.relu6(x + p["b"].reshape(1, -1, 1, 1)) if name == "a" else x
        return x

    params = drawn(a=(4, 3, 3, 3), b=(4,), c=(2, 4, 1, 1))
    _, params, _ = check(fn, params, 4 * image(2, 3, 5, 6), scales=4)
    assert bounds(params) == {"clips/a/max": [6.0] * 4}


def test_channels_first_stay_known_behind_a_pool():
    """The bounds lie on the channels, not on the last axis, although the shape has changed."""

    def fn(p, x):
        dims = ("NCHW", "OIHW", "NCHW")
        x = lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=dims)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        return jax.nn.relu6(x).reshape(len(x), -1) @ p["c"]

    params = drawn(a=(4, 3, 3, 3), c=(4 * 2 * 3, 2))
    _, params, _ = check(fn, params, 4 * image(2, 3, 5, 6), scales=4)
    assert bounds(params) == {"clips/a/max": [6.0] * 4}


def test_several_feature_axes_have_joint_bounds():
    def fn(p, x):
        h = jax.nn.relu6(jnp.einsum("bi,ihd->bhd", x, p["a"]))
        return jnp.einsum("bhd,hdo->bo", h, p["c"])

    _, params, _ = check(fn, drawn(a=(3, 2, 4), c=(2, 4, 5)), X, scales=2 * 4)
    assert np.shape(params["clips"]["a"]["max"]) == (2, 4)


def test_a_clip_behind_a_scan_belongs_to_its_last_layer():
    def fn(p, x):
        h = lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, p["a"])[0]
        return jax.nn.relu6(h) @ p["c"]

    _, params, _ = check(fn, drawn(a=(3, 4, 4), c=(4, 2)), image(6, 4), scales=3 * 4)
    assert bounds(params) == {"clips/a/max": [6.0] * 4}


def test_branches_have_bounds_of_their_own():
    def fn(p, x):
        one = lambda: jax.nn.relu6(x @ p["a"]) @ p["c"]  # noqa: E731
        two = lambda: jnp.minimum(x @ p["b"], 3.0) @ p["d"]  # noqa: E731
        return lax.cond(x.sum() > 0, one, two)

    params = drawn(a=(3, 4), c=(4, 2), b=(3, 5), d=(5, 2))
    for x in (X, -X):
        _, new, _ = check(fn, params, x, scales=4 + 5)
        assert bounds(new) == {"clips/a/max": [6.0] * 4, "clips/b/max": [3.0] * 5}


def test_the_layer_of_a_residual_sum_is_the_last_one():
    def fn(p, x):
        h = jax.nn.relu(x @ p["a"])
        return jax.nn.relu6(h @ p["b"] + h) @ p["c"]

    exposed, params = expose_clips(fn, drawn(a=(3, 4), b=(4, 4), c=(4, 2)), X)
    assert bounds(params) == {"clips/b/max": [6.0] * 4}
    np.testing.assert_array_equal(exposed(params, X), fn(params["params"], X))


def test_a_collection_of_that_name_is_not_overwritten():
    """Wrapping an exposed function in another clip and exposing that too."""
    exposed, params = expose_clips(network(jax.nn.relu6), PARAMS, X)
    outer = lambda p, x: jnp.clip(exposed(p, x), -9.0, 9.0)  # noqa: E731
    again, new = expose_clips(outer, params, X)
    np.testing.assert_array_equal(again(new, X), outer(params, X))
    assert new["params"] is params
    assert set(new) == {"params", "clips"}
    assert sorted(bounds(new).values()) == [[-9.0] * 2, [9.0] * 2]


def test_channels_stay_known_through_layout_and_flatten():
    """A clip behind a transpose has its bound on the axis that the channels moved to."""

    def fn(p, x):
        dims = ("NCHW", "OIHW", "NCHW")
        x = lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=dims)
        return jax.nn.relu6(x.transpose(0, 2, 3, 1)).mean(axis=(1, 2)) @ p["c"]

    params = drawn(a=(4, 3, 3, 3), c=(4, 2))
    _, params, _ = check(fn, params, 4 * image(2, 3, 5, 6), scales=4)
    assert bounds(params) == {"clips/a/max": [6.0] * 4}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_bounds_have_the_dtype_of_what_they_clip(dtype):
    half = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
    fn, x = network(jax.nn.relu6), X.astype(dtype)
    exposed, params = expose_clips(fn, half, x)
    assert params["clips"]["a"]["max"].dtype == dtype
    np.testing.assert_array_equal(exposed(params, x), fn(half, x))


def test_bounds_of_another_function_are_refused():
    exposed, params = expose_clips(network(jax.nn.relu6), PARAMS, X)
    params["clips"] = {"z": params["clips"]["a"]}
    text = (
        r"the bounds in params don't belong to the clips of this function: "
        r"missing \['a/max'\], unknown \['z/max'\]\. What to do: call expose_clips again"
    )
    with pytest.raises(TraceError, match=text):
        exposed(params, X)


def test_params_without_bounds_are_refused():
    """The old params in the new function: the likeliest mistake."""
    exposed, _ = expose_clips(network(jax.nn.relu6), PARAMS, X)
    with pytest.raises(
        TraceError, match=r"these params have no 'clips'.*What to do: pass the params"
    ):
        exposed(PARAMS, X)


def test_bounds_of_another_shape_are_refused():
    exposed, params = expose_clips(network(jax.nn.relu6), PARAMS, X)
    params["clips"]["a"]["max"] = jnp.ones(3)
    with pytest.raises(TraceError, match=r"'clips/a/max' has shape \(3,\) and needs \(4,\)"):
        exposed(params, X)


def test_exposing_twice_changes_nothing():
    exposed, params = expose_clips(network(jax.nn.relu6), PARAMS, X)
    again, same = expose_clips(exposed, params, X)
    assert again is exposed
    assert same is params
