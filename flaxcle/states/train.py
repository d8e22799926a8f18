"""Equalizes in the middle of training: the params, and all of the state that goes with them.

    state(params, opt_state) -> state(s * params, opt_state as for gradients / s)

What a train state is: a pair, a dataclass such as Flax's `TrainState`, or an `nnx.Optimizer` with
its model. The invariant: a new state of the same structure; nothing is changed in place.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import optax

from flaxcle.apply import apply_scales, solved
from flaxcle.errors import ConfigError
from flaxcle.paths import PyTree
from flaxcle.spec import Scales, Spec
from flaxcle.states.fields import (
    collections_of,
    copies_of_params,
    fields_of,
    joined,
    split,
)
from flaxcle.states.rescale import rescale_opt_state, trained_params


def equalize_train_state(state: Any, spec: Spec, **options: Any) -> Any:
    """Equalizes the params of a train state, and rescales its optimizer state with them.

        scales = solve(params, spec, **options)
        params, opt_state = apply_scales(params, scales, spec), rescale_opt_state(...)

    Pure: it can be jitted (with the spec static) and put under `lax.cond`, which calls it every
    N steps of a jitted train step without compiling anew. `power_of_two=True` makes it exact.

    Args:
        state: one of

            * `(params, opt_state)`; params may be `optax.LookaheadParams`, whose slow ones move
              along with the fast ones;
            * a dataclass with the fields `params` and `opt_state`, such as Flax's `TrainState`.
              Further fields that the spec names (`batch_stats/...`) are part of the params, and
              fields whose name contains `params` and that have the same tree (`ema_params`) are
              copies;
            * `(model, optimizer)` with an `nnx.Optimizer`, or an `nnx.ModelAndOptimizer`.
        spec: which scales may move.
        options: of `solve`.

    Returns:
        A new state of the same structure, dtypes and shardings. NNX objects are cloned.

    Raises:
        ConfigError: it is no train state, or a field mirrors the params and isn't known.
        ConfigError, SpecError, PathError, WeightError: as `solve` and `rescale_opt_state`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flaxcle import Group, Site
        >>> params = {"a": jnp.array([[8.0, 1.0]]), "b": jnp.array([[2.0], [4.0]])}
        >>> pair = Group("a -> b", (2,), (Site("a", (1,)), Site("b", (0,), -1)))
        >>> tx = optax.sgd(0.1, momentum=0.9)
        >>> momentum = optax.TraceState({"a": jnp.ones((1, 2)), "b": jnp.ones((2, 1))})
        >>> state = (params, (momentum, optax.EmptyState()))
        >>> params, (momentum, _) = equalize_train_state(state, Spec((pair,)))
        >>> params["a"].tolist(), momentum.trace["a"].tolist()
        ([[4.0, 2.0]], [[2.0, 0.5]])
    """
    nnx = sys.modules.get("flax.nnx")  # Whoever has one of its optimizers has imported it.
    pair = isinstance(state, tuple) and len(state) == 2
    if nnx and isinstance(state, nnx.ModelAndOptimizer):
        new = nnx.clone(state)
        _equalize_in_place(nnx, new.model, new, spec, options)
        return new
    if nnx and pair and isinstance(state[1], nnx.Optimizer):
        model, optimizer = nnx.clone(state)
        _equalize_in_place(nnx, model, optimizer, spec, options)
        return model, optimizer
    if pair:
        return _equalize_pair(state[0], state[1], spec, options)
    if not {"params", "opt_state"} <= set(fields_of(state)):
        raise ConfigError(
            f"a {type(state).__name__} is no train state",
            then="pass (params, opt_state), (model, nnx.Optimizer) or a dataclass with the fields "
            "params and opt_state",
        )
    return _equalize_fields(state, spec, options)


def _equalize_pair(
    params: PyTree, opt_state: PyTree, spec: Spec, options: Mapping[str, Any]
) -> tuple[PyTree, PyTree]:
    scales, moving = solved(trained_params(params), spec, **options)
    if not moving.groups:
        return params, opt_state
    new = _scaled(params, scales, moving)
    return new, rescale_opt_state(opt_state, params, scales, moving)


def _scaled(params: PyTree, scales: Scales, spec: Spec) -> PyTree:
    """Scaled params, the slow ones of a lookahead optimizer like the fast ones."""
    if isinstance(params, optax.LookaheadParams):
        return optax.LookaheadParams(*(apply_scales(each, scales, spec) for each in params))
    return apply_scales(params, scales, spec)


def _equalize_in_place(
    nnx: Any, model: Any, optimizer: Any, spec: Spec, options: Mapping[str, Any]
) -> None:
    """Equalizes clones of NNX objects."""
    params = nnx.state(model)
    new, opt_state = _equalize_pair(params, optimizer.opt_state, spec, options)
    nnx.update(model, new)
    nnx.update(optimizer.opt_state, nnx.state(opt_state))


def _equalize_fields(state: Any, spec: Spec, options: Mapping[str, Any]) -> Any:
    fields = fields_of(state)
    copies, collections = copies_of_params(fields), collections_of(fields, spec)
    params = joined(fields, collections)
    scales, moving = solved(trained_params(params), spec, **options)
    if not moving.groups:
        return state
    new = split(_scaled(params, scales, moving), collections)
    for name in copies:
        copy = joined(fields | {"params": fields[name]}, collections)
        new[name] = split(_scaled(copy, scales, moving), collections)["params"]
    opt_state = rescale_opt_state(fields["opt_state"], params, scales, moving)
    return dataclasses.replace(state, opt_state=opt_state, **new)
