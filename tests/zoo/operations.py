"""Dense, one operation, dense: what each operation lets through, one line each.

Hidden layers have six channels. ``count`` is the number of scales that a complete analysis finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.base import Network, enter, image, raw

Operation = Callable[[jax.Array], jax.Array]
HIDDEN = 6


def pad_with_one(x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), (0, 1)), constant_values=1.0)


# Each channel by itself and with power one: the plain pair is legal.
TRANSPARENT: dict[str, Operation] = {
    "identity": lambda x: x,
    "relu": jax.nn.relu,
    "leaky": lambda x: jax.nn.leaky_relu(x, 0.2),
    "negate": lambda x: -jax.nn.relu(x),
    "abs": jnp.abs,
    "scale": lambda x: 0.3 * jax.nn.relu(x) / 0.7,
    "channel_constant": lambda x: x * jnp.arange(1, 7, dtype=x.dtype)[None],
    "select_sign": lambda x: jnp.where(x > 0, x, 0.1 * x),
    "sign_times_abs": lambda x: jnp.sign(x) * jnp.abs(x),
    "max_of_two": lambda x: jnp.maximum(x, 0.5 * x),
    "crelu_sum": lambda x: jax.nn.relu(x) + 2 * jax.nn.relu(-x),
    "stop_gradient_sign": lambda x: x * jax.lax.stop_gradient(jnp.where(x > 0, 1.0, 0.1)),
    "barrier": lambda x: jax.lax.optimization_barrier(jax.nn.relu(x)),
    "sqrt_of_square": lambda x: jnp.sqrt(jnp.square(x)),
    "cube_root_of_cube": lambda x: jnp.cbrt(x**3),
    "geometric_mean": lambda x: jnp.sqrt(jnp.abs(x) * jnp.maximum(x, -0.5 * x)),
    "reshape_back": lambda x: jax.nn.relu(x.reshape((-1, 2, 3))).reshape((-1, HIDDEN)),
    "reverse_twice": lambda x: jax.nn.relu(x[:, ::-1])[:, ::-1],
    "batch_sort": lambda x: jnp.sort(x, axis=0),
    "batch_cumsum": lambda x: jnp.cumsum(x, axis=0),
    "batch_softmax_mix": lambda x: jax.nn.softmax(jnp.ones_like(x[:, :1]), axis=0) * x,
    "jit": jax.jit(jax.nn.relu),
    "checkpoint": jax.checkpoint(jax.nn.relu),
}

# Legal as well, but not as the plain pair: powers, indices, shared or missing channels.
MOVED: dict[str, tuple[int, Operation]] = {
    "square": (6, jnp.square),
    "square_relu": (6, lambda x: jnp.square(jax.nn.relu(x))),
    "cube": (6, lambda x: x**3),
    "square_root": (6, lambda x: jnp.sqrt(jnp.abs(x))),
    "reciprocal": (6, lambda x: 1 / x),
    "permute": (6, lambda x: x[..., np.array([3, 0, 5, 1, 4, 2])]),
    "reverse": (6, lambda x: x[:, ::-1]),
    "roll": (6, lambda x: jnp.roll(x, 2, axis=1)),
    "slice": (4, lambda x: x[:, 1:5]),
    "concat_relus": (6, lambda x: jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)], axis=1)),
    "tile": (6, lambda x: jnp.tile(x, (1, 2))),
    "repeat": (6, lambda x: jnp.repeat(x, 2, axis=1)),
    "pad": (6, lambda x: jnp.pad(x, ((0, 0), (1, 2)))),
    "split_product": (6, lambda x: x[:, :3] * x[:, 3:]),
    "split_quotient": (6, lambda x: x[:, :3] / x[:, 3:]),
    "split_sum": (3, lambda x: x[:, :3] + x[:, 3:]),
    "maxout": (3, lambda x: jnp.maximum(x[:, :3], x[:, 3:])),
    "channel_max": (1, lambda x: x.max(axis=1, keepdims=True)),
    "channel_sum": (1, lambda x: x.sum(axis=1, keepdims=True)),
    "channel_sort": (1, lambda x: jnp.sort(x, axis=1)),
    "channel_cumsum": (1, lambda x: jnp.cumsum(x, axis=1)),
    "channel_centre": (1, lambda x: x - x.mean(axis=1, keepdims=True)),
    "channel_norm": (1, lambda x: x / jnp.sqrt(jnp.square(x).sum(axis=1, keepdims=True))),
    "batch_norm_free": (6, lambda x: x / jnp.abs(x).max(axis=0, keepdims=True)),
    "outer_gate": (3, lambda x: x[:, :3] * jax.nn.sigmoid(x[:, 3:])),
    "glu": (3, lambda x: jax.nn.glu(x, axis=1)),
}

# Nothing moves: the plain pair changes the function. (A numerical count cannot see the threshold:
# its jump has no derivative.)
BLOCKING: dict[str, Operation] = {
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "hard_swish": jax.nn.hard_swish,
    "relu6": lambda x: jax.nn.relu6(8.0 * x),
    "clip_below": lambda x: jnp.maximum(x, -0.5),
    "threshold": lambda x: jnp.where(x > 0.5, x, 0.0),
    "add_one": lambda x: jax.nn.relu(x) + 1.0,
    "softmax": lambda x: jax.nn.softmax(x, axis=0),
    "logarithm": lambda x: jnp.log(jnp.abs(x)),
    "exponential": jnp.exp,
    "layer_norm": lambda x: x * jax.lax.rsqrt(jnp.square(x).mean(axis=1, keepdims=True) + 1e-2),
    "sine": jnp.sin,
    "pad_one": lambda x: jnp.maximum(pad_with_one(x[:, 1:]), x[:, :1]),
}


def network(name: str, operation: Operation, **facts: Any) -> Network:
    """``operation(x W + b) V + c``."""
    width = jax.eval_shape(operation, jnp.zeros((8, HIDDEN))).shape[1]
    leaves = {
        "first": {"kernel": (4, HIDDEN), "bias": (HIDDEN,)},
        "second": {"kernel": (width, 3), "bias": (3,)},
    }

    def fn(params: Any, x: jax.Array) -> jax.Array:
        first, second = params["first"], params["second"]
        hidden = operation(x @ first["kernel"] + first["bias"][None])
        return hidden @ second["kernel"] + second["bias"][None]

    return raw(name, fn, leaves, image(8, 4), shape=(8, 3), **facts)


def _register_all() -> None:
    pair = (("first", "second"),)
    for key, operation in TRANSPARENT.items():
        enter(f"op_{key}", network, operation, pairs=pair, scales=HIDDEN)
    for key, (count, operation) in MOVED.items():
        enter(f"op_{key}", network, operation, scales=count)
    for key, operation in BLOCKING.items():
        enter(f"op_{key}", network, operation, illegal=pair, scales=0)


_register_all()
