"""Every rule between two dense layers: what passes keeps the function, and nothing less is found.

The number beside an operation is how many of the six channels' scales survive it, by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.extend.core.primitives
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from by_hand import apply_table, in_float64, random_log2, widened
from flaxcle.discover import find_spec
from flaxcle.rules import RULES
from zoo.operations import network

Operation = Callable[[jax.Array], jax.Array]
OLDER_OR_NEWER = {
    *("add_any", "copy_p", "pjit", "stack", "tile", "square", "split", "expand_dims"),
    *("layout_constraint", "mesh_cast", "pvary", "pcast", "lt_to", "le_to", "eq_to"),
    *("scatter-add", "scatter-max", "scatter-min", "scatter_max", "scatter_min"),
    *("scatter-mul", "scatter_mul", "shard_map", "ragged_dot_general"),
    *("optimization_barrier", "stop_gradient", "reduce_window_sum", "reduce_window_max"),
}


def looked_up(x: jax.Array) -> jax.Array:
    return x[jnp.argsort(x[:, 0])]


def written(x: jax.Array) -> jax.Array:
    return jnp.zeros_like(x).at[jnp.argsort(x[:, 0])].add(jax.nn.relu(x))


def counted(x: jax.Array) -> jax.Array:
    return lax.fori_loop(0, 3, lambda _, y: 0.5 * jax.nn.relu(y) + 0.1 * y, x)


def updated(x: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice(jnp.abs(x), jax.nn.relu(x[:, 2:4]), (0, 2))


def grown(x: jax.Array) -> jax.Array:
    return lax.while_loop(lambda y: jnp.abs(y).max() < 1.0, lambda y: 2.0 * y, x)


PASSING: dict[str, tuple[int, Operation]] = {
    "abs_sign": (6, lambda x: jnp.abs(x) * jnp.sign(x)),
    "cast_to_truth": (6, lambda x: jnp.where(x.astype(bool), x, -x)),
    "cast_a_mask": (6, lambda x: x * (x > 0).astype(x.dtype)),
    "reduce_precision": (6, lambda x: lax.reduce_precision(jax.nn.relu(x), 11, 52)),
    "real": (6, lambda x: jnp.real(lax.complex(x, jnp.zeros_like(x)))),
    "imag_conj": (6, lambda x: jnp.imag(jnp.conj(lax.complex(jnp.zeros_like(x), x)))),
    "rsqrt": (6, lambda x: lax.rsqrt(jnp.abs(x))),
    "pow_half": (6, lambda x: jnp.abs(x) ** 0.5),
    "pow_third_root": (6, lambda x: jnp.power(jnp.abs(x), 1.5)),
    "is_finite": (6, lambda x: jnp.where(jnp.isfinite(x), x, 0.0)),
    "compare_channels": (6, lambda x: jnp.where((x >= 0) & (x != 0), x, 0.3 * x)),
    "clamp_zero": (
        6,
        lambda x: lax.clamp(jnp.asarray(0.0, x.dtype), x, jnp.asarray(jnp.inf, x.dtype)),
    ),
    "rem": (6, lambda x: lax.rem(x, 0.3 * jnp.abs(x) + jax.nn.relu(x))),
    "atan2": (6, lambda x: jnp.arctan2(x, jnp.abs(x[::-1])) * x),
    "cummax": (6, lambda x: lax.cummax(x, axis=0)),
    "cummin_back": (6, lambda x: lax.cummin(x, axis=0, reverse=True)),
    "reduce_min": (6, lambda x: x - x.min(axis=0, keepdims=True)),
    "reduce_prod": (6, lambda x: x * jnp.prod(x[:2], axis=0, keepdims=True)),
    "argmax": (6, lambda x: x * jnp.argmax(x, axis=0, keepdims=True).astype(x.dtype)),
    "top_k": (6, lambda x: lax.top_k(x.T, 3)[0].sum(1)[None] * jnp.ones((8, 1), x.dtype)),
    "approx_top_k": (6, lambda x: lax.approx_max_k(x.T, 2)[0].mean(1)[None] + 0.0 * x),
    "channel_argmax": (1, lambda x: jnp.where(jnp.argmax(x, axis=1, keepdims=True) > 2, x, -x)),
    "any": (6, lambda x: jnp.where(jnp.any(x > 0, axis=0)[None], x, 0.2 * x)),
    "all_xor": (6, lambda x: jnp.where(jnp.all(x > 0, axis=0)[None] ^ (x < 0), x, 0.2 * x)),
    "data_gather": (6, looked_up),
    "data_scatter": (6, written),
    "scatter_max": (6, lambda x: jnp.abs(x).at[jnp.argsort(x[:, 0])].max(x)),
    "scatter_min": (6, lambda x: jnp.abs(x).at[jnp.argsort(x[:, 0])].min(x)),
    "scatter_set": (6, lambda x: jnp.abs(x).at[jnp.argsort(x[:, 0])[:3]].set(x[:3])),
    "scatter_mul": (6, lambda x: x.at[:3].multiply(jnp.asarray(2.0, x.dtype))),
    "channel_lookup": (1, lambda x: x[:, jnp.argsort(x[0])]),
    "dynamic_slice": (3, lambda x: lax.dynamic_slice(x, (0, 2), (8, 3))),
    "dynamic_update_slice": (6, updated),
    "dynamic_rows": (6, lambda x: lax.dynamic_slice(x, (jnp.argmax(x[:, 0]), 0), (1, 6)) + 0 * x),
    "strided": (3, lambda x: x[:, ::2]),
    "interior_pad": (6, lambda x: lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (0, 0, 1)))),
    "negative_pad": (4, lambda x: lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (-1, -1, 0)))),
    "min_pool": (6, lambda x: -jax.lax.reduce_window(-x, jnp.inf, lax.min, (3, 1), (1, 1), "SAME")),
    "channel_pool": (1, lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 1), "SAME")),
    "stack_unstack": (6, lambda x: jnp.stack([x[:, :3], x[:, 3:]], axis=2).reshape((8, 6))),
    "kron": (6, lambda x: (x[:, :, None] * x[:, None, :]).reshape((8, 36))),
    "split_swap": (6, lambda x: jnp.concatenate(jnp.split(x, 3, axis=1)[::-1], axis=1)),
    "fori": (6, counted),
    "vmapped": (6, jax.vmap(lambda row: jax.nn.relu(row) - 0.5 * row)),
    "scanned_rows": (6, lambda x: lax.scan(lambda c, r: (c + r, jax.nn.relu(c)), 0 * x[0], x)[1]),
    "associative": (6, lambda x: lax.associative_scan(jnp.add, x, axis=0)),
    "custom_vjp": (6, jax.custom_vjp(jax.nn.relu)),
    "cond": (6, lambda x: lax.cond(x.shape[0] > 4, jnp.abs, jax.nn.relu, x)),
    "switch": (6, lambda x: lax.switch(jnp.argmax(x[:, 0]) % 2, [jnp.abs, jax.nn.relu], x)),
    "einsum_trace": (6, lambda x: jnp.einsum("bi,bi->i", x, jnp.ones_like(x))[None] + 0 * x),
    "constant_matrix": (1, lambda x: x @ jnp.asarray(np.arange(36.0).reshape(6, 6), x.dtype)),
    "triangle": (6, lambda x: jnp.tril(jnp.ones((8, 8), x.dtype)) @ x),
    "linspace_mask": (6, lambda x: x * jnp.linspace(0.0, 1.0, 6, dtype=x.dtype)[None]),
    "one_hot_select": (6, lambda x: x * jax.nn.one_hot(2, 8, dtype=x.dtype)[:, None]),
}
PASSING["custom_vjp"][1].defvjp(lambda x: (jax.nn.relu(x), x), lambda x, g: (g * (x > 0),))  # type: ignore[attr-defined]

BLOCKING: dict[str, Operation] = {
    "floor": jnp.floor,
    "round_to_int": lambda x: jnp.round(x).astype(jnp.int32).astype(x.dtype),
    "cumprod": lambda x: lax.cumprod(x, axis=0),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x, axis=0),
    "nextafter": lambda x: lax.nextafter(x, jnp.ones_like(x)),
    "pow_of_data": lambda x: jnp.power(1.5, x),
    "self_power": lambda x: jnp.power(jnp.abs(x), jnp.abs(x)),
    "divide_by_zero_mask": lambda x: jnp.where(x > 1.0, x, -x),
    "grown": grown,
    "scatter_mul_by_data": lambda x: x.at[:2].multiply(x[2:4]),
    "erf_inv": lambda x: lax.erf_inv(0.1 * jnp.tanh(x)),
    "clamp": lambda x: lax.clamp(jnp.asarray(-1.0, x.dtype), x, jnp.asarray(1.0, x.dtype)),
    "carry_shift": lambda x: lax.fori_loop(0, 3, lambda _, y: y + 1.0, x),
    "callback": lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x),
    "svd": lambda x: jnp.linalg.qr(x)[0],
    "fft_phase": lambda x: jnp.angle(jnp.fft.fft(x, axis=1)) + jnp.tanh(x),
    "sum_with_input_like_constant": lambda x: x + jnp.linspace(0.1, 1.0, 6, dtype=x.dtype)[None],
}


def test_every_rule_names_a_primitive():
    known = {name.removesuffix("_p") for name in dir(jax.extend.core.primitives)}
    assert set(RULES) - known - OLDER_OR_NEWER == set()


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_found_and_keeps_the_function(name):
    count, operation = PASSING[name]
    net = network(name, operation)
    spec = find_spec(net.fn, net.params, *net.inputs)
    assert spec.scales == count
    run, wide = in_float64(net.fn, *net.inputs), widened(net.params)
    moved = apply_table(wide, spec, random_log2(spec))
    for before, after in zip(run(wide), run(moved), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9 * np.abs(before).max())


@pytest.mark.parametrize("name", BLOCKING)
def test_what_blocks_is_named(name):
    net = network(name, BLOCKING[name])
    spec = find_spec(net.fn, net.params, *net.inputs)
    assert spec.groups == ()
    (row,) = [b for b in spec.blocked if b.path == "first/kernel" and b.axis == 1]
    assert row.reason
    assert row.primitive
    assert "test_primitives.py" in row.source or "operations.py" in row.source


def test_a_narrow_float_carries_the_scale():
    net = network("half", lambda x: jax.nn.relu(x).astype(jnp.bfloat16).astype(x.dtype))
    assert find_spec(net.fn, net.params, *net.inputs).scales == 6


def test_unknown_primitive_is_never_guessed():
    net = network("qr", partial(BLOCKING["svd"]))
    spec = find_spec(net.fn, net.params, *net.inputs)
    reasons = {row.reason for row in spec.blocked if row.path == "first/bias"}
    assert len(reasons) == 1
    assert "no rule says how a scale passes" in reasons.pop()
