"""Optimizers with what is known of their states, and how to feed them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib
from small_net import drawn, each

from flaxcle.tables import Table

STEPS = 3
KERNELS = {"a/kernel", "b/kernel"}
BIASES = {"a/bias", "b/bias"}


class Case(NamedTuple):
    """An optimizer and the leaves of its state that need not be rescaled, or can't be."""

    tx: Any
    leaves: set[str]
    seen: Callable[[Any], Any] = lambda params: params


def label(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim == 2 else "vector", params)


def is_matrix(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim == 2, params)


def partitioned() -> Any:
    adam, sgd = optax.adam(0.1, eps=0.0), optax.sgd(0.1, momentum=0.9)
    parts = optax.partition({"matrix": adam, "vector": sgd}, label)
    return optax.chain(parts, optax.trace(0.5))


def injected() -> Any:
    return optax.inject_hyperparams(optax.adam)(learning_rate=optax.constant_schedule(0.1))


def everything() -> Any:
    decay = optax.masked(optax.add_decayed_weights(0.1), is_matrix)
    return optax.chain(
        optax.clip_by_global_norm(1e9),
        optax.zero_nans(),
        optax.apply_if_finite(optax.scale_by_adam(eps=0.0), 3),
        optax.ema(0.9),
        decay,
        optax.scale_by_schedule(optax.constant_schedule(0.1)),
    )


MASKED = {"0/inner_state/0/count"}
CASES: dict[str, Case] = {
    "sgd": Case(optax.sgd(0.1), set()),
    "momentum": Case(optax.sgd(0.1, momentum=0.9), set()),
    "nesterov": Case(optax.sgd(0.1, momentum=0.9, nesterov=True), set()),
    "ema": Case(optax.chain(optax.ema(0.9), optax.scale(-0.1)), {"0/count"}),
    "adam": Case(optax.adam(0.1), {"0/count"}),
    "adam, bfloat16 mu": Case(optax.adam(0.1, mu_dtype=jnp.bfloat16), {"0/count"}),
    "adamw": Case(optax.adamw(0.1), {"0/count"}),
    "nadam": Case(optax.nadam(0.1), {"0/count"}),
    "nadamw": Case(optax.nadamw(0.1), {"0/count"}),
    "amsgrad": Case(optax.amsgrad(0.1), {"0/count"}),
    "adabelief": Case(optax.adabelief(0.1, eps_root=0.0), {"0/count"}),
    "adan": Case(optax.adan(0.1), {"0/t"}),
    "ademamix": Case(contrib.ademamix(0.1), {"0/count", "0/count_m2"}),
    "lion": Case(optax.lion(0.1), {"0/count"}),
    "lamb": Case(optax.lamb(0.1), {"0/count"}),
    "rmsprop": Case(optax.rmsprop(0.1), set()),
    "rmsprop, bias correction": Case(optax.rmsprop(0.1, bias_correction=True), {"0/count"}),
    "rmsprop, momentum": Case(optax.rmsprop(0.1, eps=0.0, momentum=0.9), each("2/trace")),
    "rmsprop, centered, momentum": Case(
        optax.rmsprop(0.1, eps=0.0, centered=True, momentum=0.9, bias_correction=True),
        {"0/count"} | each("2/trace"),
    ),
    "adagrad": Case(optax.adagrad(0.1, initial_accumulator_value=0.0), set()),
    "optimistic": Case(optax.optimistic_gradient_descent(0.1), {"0/is_initial_step"}),
    "apply_every": Case(optax.apply_every(2), {"count"}),
    "adafactor, unfactored": Case(
        optax.adafactor(0.1, factored=False), {"0/count"} | each("0/v_row", "0/v_col")
    ),
    "adafactor": Case(
        optax.adafactor(0.1, min_dim_size_to_factor=2),
        {"0/count"}
        | {f"0/v/{name}" for name in KERNELS}
        | {f"0/{part}/{name}" for part in ("v_row", "v_col") for name in BIASES},
    ),
    "muon": Case(
        contrib.muon(0.1),
        {
            "inner_states/adam/inner_state/0/count",
            "inner_states/muon/inner_state/0/count",
            "inner_states/muon/inner_state/0/ns_coeffs",
        },
    ),
    "masked": Case(
        optax.chain(optax.masked(optax.adam(0.1, eps=0.0), is_matrix), optax.trace(0.9)),
        {"0/inner_state/0/count"} | {f"1/trace/{name}" for name in KERNELS},
    ),
    "partition": Case(
        partitioned(),
        {"0/inner_states/matrix/inner_state/0/count"} | {f"1/trace/{name}" for name in KERNELS},
    ),
    "MultiSteps": Case(
        optax.MultiSteps(optax.adam(0.1), every_k_schedule=2),
        {"mini_step", "gradient_step", "inner_opt_state/0/count"},
    ),
    "lookahead": Case(
        optax.lookahead(optax.adam(0.1), sync_period=2, slow_step_size=0.5),
        {"fast_state/0/count", "steps_since_sync"},
        optax.LookaheadParams.init_synced,
    ),
    "schedule_free": Case(
        contrib.schedule_free(optax.adam(0.0, b1=0.0), 0.0),
        {"b1", "weight_sum", "step_count", "max_lr", "base_optimizer_state/0/count"},
    ),
    "inject_hyperparams": Case(
        injected(),
        {
            "count",
            "hyperparams/b1",
            "hyperparams/b2",
            "hyperparams/eps",
            "hyperparams/eps_root",
            "hyperparams/learning_rate",
            "hyperparams_states/learning_rate/count",
            "inner_state/0/count",
        },
    ),
    "conditionally": Case(
        optax.conditionally_transform(optax.trace(0.9), lambda step: step < 2), {"step"}
    ),
    "everything": Case(
        everything(),
        {
            "1/found_nan/a/bias",
            "1/found_nan/a/kernel",
            "1/found_nan/b/bias",
            "1/found_nan/b/kernel",
            "2/notfinite_count",
            "2/last_finite",
            "2/total_notfinite",
            "2/inner_state/count",
            "3/count",
            "5/count",
        }
        | each("3/ema"),
    ),
}
UNMAPPED: dict[str, Case] = {
    "sm3": Case(
        optax.sm3(0.1),
        {
            "0/mu/a/bias/0",
            "0/mu/a/kernel/0",
            "0/mu/a/kernel/1",
            "0/mu/b/bias/0",
            "0/mu/b/kernel/0",
            "0/mu/b/kernel/1",
        },
    ),
    "novograd": Case(optax.novograd(0.1), each("0/mu", "0/nu")),
    "lbfgs": Case(
        optax.lbfgs(linesearch=None),
        each("0/params", "0/updates", "0/diff_params_memory", "0/diff_updates_memory")
        | {"0/weights_memory"},
    ),
    "galore": Case(
        contrib.galore(0.1, rank=3),
        each("0/base_optimizer_state/mu", "0/base_optimizer_state/nu", "0/projector"),
    ),
}


def fed(case: Case) -> Callable[[list[Any], list[Any]], Any]:
    """The state of an optimizer that has seen these params and gradients."""

    @jax.jit
    def run(params: list[Any], grads: list[Any]) -> Any:
        state = case.tx.init(case.seen(params[0]))
        with jax.numpy_dtype_promotion("standard"):  # which optax relies on
            for each_params, each_grads in zip(params, grads, strict=True):
                _, state = case.tx.update(each_grads, state, case.seen(each_params))
        return state

    return run


def history(name: str) -> tuple[list[Any], list[Any]]:
    """Params and gradients; those of Adafactor are of rank one, so that its means say all."""
    params = [drawn(f"params {step}") for step in range(STEPS)]
    grads = [drawn(f"gradients {step}") for step in range(STEPS)]
    if name == "adafactor":
        grads = [
            jax.tree.map(lambda leaf, t=t: t * rank_one(leaf), grads[0]) for t in (1.0, 2.0, 3.0)
        ]
    return params, grads


def rank_one(leaf: jax.Array) -> jax.Array:
    return leaf if leaf.ndim == 1 else leaf[:, :1] * leaf[:1]


def column(table: Table, slot: str) -> set[str]:
    return {row["leaf"] for row in table if row["slot"] == slot}
