"""Recurrent networks: LSTM and GRU in Linen, a ReLU network by lax.scan, a loop with a while."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.base import Network, image, linen, raw, register


class Recurrent(nn.Module):
    """Dense, ReLU, a recurrent layer, dense on the last state."""

    cell: type[nn.RNNCellBase]
    features: int = 5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(6)(x))
        # Flax starts the carry in param_dtype; given here so that it follows the input's.
        zero = jnp.zeros((x.shape[0], self.features), x.dtype)
        carry = (zero, zero) if issubclass(self.cell, nn.LSTMCell | nn.OptimizedLSTMCell) else zero
        x = nn.RNN(self.cell(self.features))(x, initial_carry=carry)
        return nn.Dense(3)(x[:, -1])


def relu_rnn_fn(params: Any, x: jax.Array) -> jax.Array:
    """h = relu(x wx + h wh + b); the carry pins out-axis and in-axis of wh to each other."""

    def step(h: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        return nn.relu(x @ params["wx"] + h @ params["wh"] + params["b"][None]), None

    start = jnp.zeros((x.shape[0], params["b"].size), x.dtype)
    h, _ = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return h @ params["wo"]


def while_fn(params: Any, x: jax.Array) -> jax.Array:
    """One layer applied three times by a while loop, from a state that the input sets."""

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, h = state
        return i + 1, nn.relu(h @ params["wh"] + params["b"][None])

    _, h = jax.lax.while_loop(lambda s: s[0] < 3, step, (jnp.int32(0), nn.relu(x @ params["wx"])))
    return h @ params["wo"]


def fori_fn(params: Any, x: jax.Array) -> jax.Array:
    """The same by fori_loop, which becomes a scan and has a derivative."""

    def step(_: jax.Array, h: jax.Array) -> jax.Array:
        return nn.relu(h @ params["wh"] + params["b"][None])

    return jax.lax.fori_loop(0, 3, step, nn.relu(x @ params["wx"])) @ params["wo"]


def branch_fn(params: Any, x: jax.Array) -> jax.Array:
    """A cond whose branches read different weights of the same hidden channels."""
    h = nn.relu(x @ params["wx"])
    h = jax.lax.cond(
        x.sum() > 0,
        lambda h: nn.relu(h @ params["wa"]),
        lambda h: nn.relu(h @ params["wb"] + params["bb"][None]),
        h,
    )
    return h @ params["wo"]


@register
def lstm(name: str) -> Network:
    net, inputs = Recurrent(nn.OptimizedLSTMCell), image(2, 4, 3)
    note = "the gates fix the state: only the layer before it and none after it can move"
    pairs = (("Dense_0", tuple(f"OptimizedLSTMCell_0/i{gate}" for gate in "ifgo")),)
    return linen(name, net, inputs, shape=(2, 3), pairs=pairs, scales=6, note=note)


@register
def gru(name: str) -> Network:
    net, inputs = Recurrent(nn.GRUCell), image(2, 4, 3)
    note = "the gates fix the state: only the layer before it and none after it can move"
    pairs = (("Dense_0", tuple(f"GRUCell_0/i{gate}" for gate in "rzn")),)
    return linen(name, net, inputs, shape=(2, 3), pairs=pairs, scales=6, note=note)


@register
def relu_rnn(name: str) -> Network:
    leaves = {"wx": (3, 6), "wh": (6, 6), "b": (6,), "wo": (6, 2)}
    return raw(name, relu_rnn_fn, leaves, image(2, 4, 3), shape=(2, 2), scales=6)


@register
def while_loop(name: str) -> Network:
    leaves = {"wx": (3, 6), "wh": (6, 6), "b": (6,), "wo": (6, 2)}
    note = "a while has no reverse derivative: counted on fori_loop, which computes the same"
    return raw(name, while_fn, leaves, image(4, 3), shape=(4, 2), scales=6, note=note)


@register
def fori_loop(name: str) -> Network:
    leaves = {"wx": (3, 6), "wh": (6, 6), "b": (6,), "wo": (6, 2)}
    return raw(name, fori_fn, leaves, image(4, 3), shape=(4, 2), scales=6)


@register
def cond_branches(name: str) -> Network:
    leaves = {"wx": (3, 6), "wa": (6, 5), "wb": (6, 5), "bb": (5,), "wo": (5, 2)}
    return raw(name, branch_fn, leaves, image(4, 3), shape=(4, 2), scales=6 + 5)
