"""The choice of up or down that changes a layer's outputs least.

    minimise   sum over outputs o of  e_o^T H e_o,     e = w_rounded - w

First by gradient on a relaxed choice h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), with a regulariser
sum 1 - |2 h - 1|^beta that drives h to 0 or 1 while beta falls (Nagel et al. 2020, eq. 21 to 24,
arXiv:2004.10568); then by sweeps that flip each weight on its own where that lowers the error. In
steps of the grid and with the inputs' mean square at one, so that the regulariser's weight fits
every layer. The invariant: no output's error is above that of the nearest choice.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flaxcle.descent import descended
from flaxcle.rounding.choices import Choices

_STRETCH = 1.2
_BETAS = (20.0, 2.0)
_FREE = 0.2
_WEIGHT = 1.0
_SWEEPS = 10
_DAMPING = 0.01


def damped(moment: jax.Array) -> jax.Array:
    """H: the second moment, the inputs' mean square set to one, and 1 % on the diagonal."""
    square = jnp.mean(jnp.diagonal(moment, axis1=-2, axis2=-1), -1)[..., None, None]
    unit = jnp.eye(moment.shape[-1], dtype=moment.dtype)
    return moment / jnp.where(square > 0, square, 1) + _DAMPING * unit[None, None]


def errors(choices: Choices, up: jax.Array, hessian: jax.Array) -> jax.Array:
    """e^T H e of each output."""
    e = _error(choices, up)
    return jnp.sum(e * _times(e, hessian), -1)


def search(
    choices: Choices,
    hessian: jax.Array,
    optimizer: optax.GradientTransformation,
    steps: int,
) -> jax.Array:
    """The best choice found, 0 or 1."""
    nearest = choices.nearest()
    relaxed = _anneal(choices, hessian, optimizer, steps)
    learned = _polish(choices, jnp.where(relaxed > 0.5, choices.width, 0), hessian)
    better = errors(choices, learned, hessian) < errors(choices, nearest, hessian)
    return jnp.where(better[..., None], learned, nearest)


def _error(choices: Choices, up: jax.Array) -> jax.Array:
    return choices.down + choices.width * up - choices.exact


def _times(e: jax.Array, hessian: jax.Array) -> jax.Array:
    return jnp.matmul(e, hessian, precision=jax.lax.Precision.HIGHEST)


def _relaxed(v: jax.Array) -> jax.Array:
    return jnp.clip(_STRETCH * jax.nn.sigmoid(v) - (_STRETCH - 1) / 2, 0, 1)


def _anneal(
    choices: Choices, hessian: jax.Array, optimizer: optax.GradientTransformation, steps: int
) -> jax.Array:
    """The relaxed choice after gradient descent from the exact weights."""

    def loss(v: jax.Array, step: jax.Array) -> jax.Array:
        h = _relaxed(v)
        e = _error(choices, h)
        # The gradient of e^T H e with one product instead of two.
        error = 2 * jnp.sum(e * jax.lax.stop_gradient(_times(e, hessian)))
        part = jnp.clip((step / steps - _FREE) / (1 - _FREE), 0, 1)
        beta = _BETAS[0] + (_BETAS[1] - _BETAS[0]) * part
        undecided = jnp.sum(choices.width * (1 - jnp.abs(2 * h - 1) ** beta))
        return error + jnp.where(step >= _FREE * steps, _WEIGHT, 0) * undecided

    def turn(carry: Any, step: jax.Array) -> Any:
        v, state = carry
        gradient = jax.grad(loss)(v, step)
        return descended(optimizer.update, gradient, state, v), None

    share = jnp.clip(choices.exact - choices.down, 0, 1)
    start = -jnp.log(_STRETCH / (share + (_STRETCH - 1) / 2) - 1)
    turns = jnp.arange(steps, dtype=start.dtype)
    (v, _), _ = jax.lax.scan(turn, (start, optimizer.init(start)), turns)
    return _relaxed(v)


def _polish(choices: Choices, up: jax.Array, hessian: jax.Array) -> jax.Array:
    """Sweeps over the inputs; each flips the outputs' weights whose error falls by it."""

    def flip(k: jax.Array, carry: Any) -> Any:
        up, gradient = carry
        row = jax.lax.dynamic_slice_in_dim(hessian, k, 1, -2)
        old, width, slope = (
            jax.lax.dynamic_slice_in_dim(x, k, 1, -1) for x in (up, choices.width, gradient)
        )
        change = width * (1 - 2 * old)
        curvature = jax.lax.dynamic_slice_in_dim(row, k, 1, -1)
        change = jnp.where(change * (2 * slope + change * curvature) < 0, change, 0)
        up = jax.lax.dynamic_update_slice_in_dim(up, old + change, k, -1)
        return up, gradient + change * row

    def sweep(_: jax.Array, up: jax.Array) -> jax.Array:
        gradient = _times(_error(choices, up), hessian)
        return jax.lax.fori_loop(0, hessian.shape[-1], flip, (up, gradient))[0]

    return jax.lax.fori_loop(0, _SWEEPS, sweep, up)
