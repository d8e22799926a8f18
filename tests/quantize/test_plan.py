"""Golden placements: where an int8 accelerator rounds, and under which names."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from flaxcle.jaxpr import trace
from flaxcle.quantize.plan import Plan, make_plan
from zoo import build

X = jnp.ones((2, 6, 6, 4))
ROWS = jnp.ones((3, 4))


def plan_of(fn: Any, params: Any, *inputs: Any) -> Plan:
    return make_plan(trace(fn, params, *inputs))


def placed(plan: Plan) -> list[tuple[str, ...]]:
    """Per op in program order: its primitive and the quantizers of its operands."""
    return [
        (op.primitive.removesuffix("_general_dilated").removesuffix("_general"), *_names(operands))
        for op, operands in plan.at.items()
    ]


def _names(operands: dict[int, Any]) -> list[str]:
    return [operands[k].name for k in sorted(operands)]


def ends(plan: Plan) -> tuple[list[str | None], list[str | None]]:
    return tuple([q and q.name for q in side] for side in (plan.inputs, plan.outputs))


def linen(module: nn.Module, *inputs: Any) -> Plan:
    return plan_of(module.apply, jax.eval_shape(module.init, jax.random.key(0), *inputs), *inputs)


def elementwise(fn: Any, *inputs: Any) -> list[tuple[str, ...]]:
    """The placements on the sums of a function without params."""
    return placed(plan_of(lambda _, *args: fn(*args), {}, *inputs))


class Chain(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(x.mean((1, 2)))


def test_a_layer_is_fused_with_its_bias_activation_and_pool() -> None:
    plan = linen(Chain(), X)
    assert placed(plan) == [
        ("conv", "input_0", "Conv_0/weight"),
        ("dot", "Dense_0/input", "Dense_0/weight"),
    ]
    assert ends(plan) == (["input_0"], ["output_0"])
    assert list(plan.activations()) == ["input_0", "Dense_0/input", "output_0"]


class Block(nn.Module):
    """A ResNet block with a projection."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(4, (1, 1), name="stem")(x))
        y = nn.relu(nn.Conv(4, (3, 3), name="a")(x))
        x = nn.relu(nn.Conv(4, (3, 3), name="b")(y) + x)
        return nn.Conv(4, (1, 1), name="c")(x) + nn.Conv(4, (1, 1), name="d")(x)


def test_both_operands_of_residual_adds_share_with_the_layers_that_read_them() -> None:
    assert placed(linen(Block(), X)) == [
        ("conv", "input_0", "stem/weight"),
        ("conv", "a/input", "a/weight"),
        ("conv", "b/input", "b/weight"),
        ("add", "Block/add/operand_0", "a/input"),
        ("conv", "c/input", "c/weight"),
        ("conv", "c/input", "d/weight"),
        ("add", "Block/add_1/operand_0", "Block/add_1/operand_1"),
    ]


class Inverted(nn.Module):
    """A MobileNetV2 block: the projection has no activation before the sum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu6(nn.Conv(8, (1, 1), name="expand")(x))
        y = nn.relu6(nn.Conv(8, (3, 3), feature_group_count=8, name="depthwise")(y))
        return x + nn.Conv(4, (1, 1), name="project")(y)


def test_an_inverted_residual() -> None:
    assert placed(linen(Inverted(), X)) == [
        ("conv", "input_0", "expand/weight"),
        ("conv", "depthwise/input", "depthwise/weight"),
        ("conv", "project/input", "project/weight"),
        ("add", "input_0", "Inverted/add/operand_1"),
    ]


def test_one_sum_after_another_rounds_the_sum_between() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["a"] + x @ p["b"] + x @ p["c"]

    assert placed(plan_of(fn, dict.fromkeys("abc", jnp.eye(4)), ROWS)) == [
        ("dot", "input_0", "a/weight"),
        ("dot", "input_0", "b/weight"),
        ("add", "add/operand_0", "add/operand_1"),
        ("dot", "input_0", "c/weight"),
        ("add", "add_1/operand_0", "add_1/operand_1"),
    ]


def layer_norm(x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + 0.5


def rope(x: jax.Array, positions: jax.Array) -> jax.Array:
    angle = positions[:, None].astype(x.dtype) * jnp.array([[1.0, 0.1]])
    left, right = jnp.split(x, 2, axis=-1)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], -1)


@pytest.mark.parametrize(
    "fn",
    [
        jax.nn.gelu,
        lambda x: jax.nn.gelu(x, approximate=False),
        jax.nn.silu,
        jax.nn.softmax,
        jax.nn.log_softmax,
        jax.nn.logsumexp,
        layer_norm,
        lambda x: x - jax.lax.stop_gradient(x).max(),
        lambda x: rope(x, jnp.arange(3)),
        lambda x: x + jnp.ones((3, 4)),
        lambda x: x + x.sum(0, keepdims=True),
        lambda x: jnp.cumsum(x, 0) + x,
    ],
)
def test_sums_within_one_tensor_are_no_residual_adds(fn: Any) -> None:
    assert elementwise(fn, ROWS) == []


def test_what_comes_from_integers_is_exact() -> None:
    ids = jnp.arange(3)
    assert elementwise(rope, ROWS, ids) == []
    assert elementwise(lambda x, i: x + jnp.where(i == 0, -1e9, 0.0)[:, None], ROWS, ids) == []
    assert elementwise(lambda i, j: i + j, ids, ids) == []


def test_a_difference_of_two_tensors_is_a_residual_add() -> None:
    assert elementwise(jnp.subtract, ROWS, ROWS) == [("sub", "input_0", "input_1")]
    assert elementwise(jnp.add, ROWS, ROWS) == [("add", "input_0", "input_1")]
    assert elementwise(jnp.multiply, ROWS, ROWS) == []


def test_a_bias_is_not_an_operand_of_a_residual_add() -> None:
    params = {"kernel": jnp.eye(4), "bias": jnp.ones(4), "gain": jnp.ones(4)}

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return (x @ p["kernel"] + p["bias"][None]) * p["gain"][None] - p["bias"][None]

    assert placed(plan_of(fn, params, ROWS)) == [("dot", "input_0", "kernel/weight")]


def test_attention_rounds_both_operands_of_both_products() -> None:
    plan = linen(nn.MultiHeadDotProductAttention(2, qkv_features=4), jnp.ones((1, 3, 4)))
    scope = "MultiHeadDotProductAttention"
    scores, mixed = f"{scope}/...qhd,...khd->...hqk", f"{scope}/...hqk,...khd->...qhd"
    assert placed(plan) == [
        ("dot", "input_0", "query/weight"),
        ("dot", "input_0", "key/weight"),
        ("dot", "input_0", "value/weight"),
        ("dot", f"{scores}/operand_0", f"{scores}/operand_1"),
        ("dot", f"{mixed}/operand_0", f"{mixed}/operand_1"),
        ("dot", "out/input", "out/weight"),
    ]


def test_a_concat_is_rounded_once_where_it_is_read() -> None:
    params = {name: jnp.eye(4) for name in "ab"} | {"c": jnp.ones((8, 2))}

    def fn(p: Any, x: jax.Array) -> jax.Array:
        return jnp.concatenate([x @ p["a"], x @ p["b"]], -1) @ p["c"]

    assert placed(plan_of(fn, params, ROWS)) == [
        ("dot", "input_0", "a/weight"),
        ("dot", "input_0", "b/weight"),
        ("dot", "c/input", "c/weight"),
    ]


def test_several_inputs_and_outputs() -> None:
    def fn(p: Any, tree: Any, ids: jax.Array) -> Any:
        hidden = tree["x"] @ p["kernel"]
        return {"logits": hidden, "ids": ids, "table": p["kernel"], "x": tree["x"]}

    plan = plan_of(fn, {"kernel": jnp.eye(4)}, {"x": ROWS, "mask": ROWS > 0}, jnp.arange(3))
    assert ends(plan) == ([None, "input_1", None], [None, "output_1", None, "output_3"])
    assert placed(plan) == [("dot", "input_1", "kernel/weight")]


def test_embeddings_are_read_not_rounded() -> None:
    plan = linen(nn.Sequential([nn.Embed(9, 4), nn.Dense(2)]), jnp.arange(3))
    assert placed(plan) == [("dot", "layers_1/input", "layers_1/weight")]
    assert ends(plan) == ([None], ["output_0"])


def test_integer_operands_are_left_alone() -> None:
    params = jnp.eye(4, dtype=jnp.int32)
    plan = plan_of(lambda p, i: (i @ p).astype(jnp.float32), params, jnp.ones((3, 4), jnp.int32))
    assert placed(plan) == []
    assert ends(plan) == ([None], ["output_0"])


def test_what_no_output_needs_has_no_quantizer() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        jnp.tanh(x @ p["unused"])
        return x @ p["used"]

    plan = plan_of(fn, {"used": jnp.eye(4), "unused": jnp.eye(4)}, ROWS)
    assert placed(plan) == [("dot", "input_0", "used/weight")]


def test_products_of_params_alone_have_no_quantizer() -> None:
    params = {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 4))}
    plan = plan_of(lambda p, x: x @ (p["a"] @ p["b"]), params, ROWS)
    assert placed(plan) == [("dot", "input_0", "dot_general/weight")]


def test_a_layer_applied_twice_has_two_inputs() -> None:
    fn = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"]  # noqa: E731
    plan = plan_of(fn, {"dense": {"w": jnp.eye(4)}}["dense"], ROWS)
    assert placed(plan) == [("dot", "input_0", "w/weight"), ("dot", "w/input", "w/weight_1")]


@pytest.mark.parametrize(
    ("leaf", "layer"),
    [
        (("params", "Conv_0", "kernel"), "Conv_0"),
        (("params", "kernel"), "kernel"),
        (("Conv_0", "kernel"), "Conv_0"),
        (("layers", "0", "w"), "layers/0"),
        (("layers", "0", "qkv"), "layers/0/qkv"),
        (("w1",), "w1"),
    ],
)
def test_layers_are_named_after_their_module_or_leaf(leaf: tuple[str, ...], layer: str) -> None:
    params: Any = jnp.eye(4)
    for key in reversed(leaf):
        params = {key: params}
    plan = plan_of(lambda p, x: jnp.tanh(x) @ jax.tree.leaves(p)[0], params, ROWS)
    assert placed(plan) == [("dot", f"{layer}/input", f"{layer}/weight")]


def test_nnx_names_are_paths() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])

        def __call__(self, x: jax.Array) -> jax.Array:
            for block in self.blocks:
                x = x + nnx.relu(block(x))
            return x

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    assert placed(plan_of(lambda s, x: nnx.merge(graph, s)(x), state, ROWS)) == [
        ("dot", "input_0", "blocks/0/weight"),
        ("add", "input_0", "add/operand_1"),
        ("dot", "blocks/1/input", "blocks/1/weight"),
        ("add", "blocks/1/input", "add_1/operand_1"),
    ]


# The zoo's batches are their inputs' leading axes; MoE and graph networks have none to change.
@pytest.mark.parametrize(
    "name",
    ["vgg", "resnet18_folded", "mobilenetv3", "unet", "vit", "gpt_raw", "lstm", "scan_stack"],
)
def test_names_do_not_depend_on_the_batch_size(name: str) -> None:
    network = build(name)
    found = []
    for repeat in (1, 3):
        inputs = [jnp.concatenate([x[:1]] * repeat) for x in network.inputs]
        plan = plan_of(network.fn, network.params, *inputs)
        found.append((placed(plan), ends(plan)))
    assert found[0] == found[1]


def test_nothing_inside_a_while_loop() -> None:
    network = build("while_loop")
    plan = plan_of(network.fn, network.params, *network.inputs)
    assert all(op.primitive != "while" for op in plan.at)
    (loop,) = (op for op in plan.flow.ops if op.primitive == "while")
    inner = {op for graph in loop.bodies for op in graph.flat}
    assert any(op.primitive == "dot_general" for op in inner)
    assert not inner & set(plan.at)


def test_scans_and_branches_are_entered() -> None:
    def fn(p: Any, x: jax.Array) -> jax.Array:
        def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jax.lax.cond(x.sum() > 0, lambda: x @ w + x, lambda: x), None

        return jax.lax.scan(body, x, p["layers"])[0] @ p["head"]

    params = {"layers": jnp.ones((3, 4, 4)), "head": jnp.eye(4)}
    assert placed(plan_of(fn, params, ROWS)) == [
        ("dot", "layers/input", "layers/weight"),
        ("add", "add/operand_0", "layers/input"),
        ("dot", "head/input", "head/weight"),
    ]


def test_a_learned_first_state_is_data_once_the_loop_turns() -> None:
    def fn(p: Any, xs: jax.Array) -> jax.Array:
        def body(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(h @ p["w"] + x), None

        return jax.lax.scan(body, p["first"], xs)[0]

    plan = plan_of(fn, {"w": jnp.eye(4), "first": jnp.ones((1, 4))}, jnp.ones((5, 1, 4)))
    assert placed(plan) == [
        ("dot", "w/input", "w/weight"),
        ("add", "add/operand_0", "add/operand_1"),
    ]


CHANNELS = {
    "vgg": {"Conv_0/weight": (3,), "Dense_0/weight": (1,)},
    "depthwise_multiplier": {"Conv_1/weight": (3,)},
    "grouped": {"Conv_1/weight": (3,)},
    "transposed": {"ConvTranspose_0/weight": (3,)},
    "einsum": {"Einsum_0/weight": (1, 2), "Einsum_1/weight": (2,)},
    "cross_attention": {"query/weight": (1, 2), "out/weight": (2,), "grid/weight": (1, 2)},
    "moe_top2": {"up/weight": (0, 2), "down/weight": (0, 2)},
    "equinox_cnn": {"conv1/weight": (0,), "mlp/layers/0/weight": (0,)},
    "conv1d": {"Conv_0/weight": (2,), "Conv_1/weight": (2,)},
    "conv3d": {"Conv_0/weight": (4,)},
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channel_axes_are_those_that_become_output_channels(name: str) -> None:
    network = build(name)
    plan = plan_of(network.fn, network.params, *network.inputs)
    weights = {
        quantizer.name: quantizer.channel_axes
        for operands in plan.at.values()
        for quantizer in operands.values()
        if quantizer.weight
    }
    assert CHANNELS[name].items() <= weights.items()
