"""Which leaf of which optimizer moves how: told by the table, proved by feeding an optimizer.

The law: rescaling a state gives the state that the same optimizer holds when all params that it
saw were multiplied by s and all gradients divided by s.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib
from small_net import FACTORS, NAMES, PARAMS, SCALES, SPEC, assert_same, drawn, each, scaled

import flaxcle as fc
from flaxcle import Site
from flaxcle.errors import PathError, SpecError
from flaxcle.paths import named_leaves
from flaxcle.states.table import STATES
from flaxcle.tables import Table

STEPS = 3
# Weighing the means of a factored moment rounds, and so does XLA's rsqrt in front of a trace.
ROUNDED = {"adafactor", "rmsprop, momentum", "rmsprop, centered, momentum"}
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


@pytest.mark.parametrize("name", CASES)
def test_state_is_as_if_it_had_seen_the_equalized_network(name: str) -> None:
    run, (params, grads) = fed(CASES[name]), history(name)
    state = run(params, grads)
    expected = run([scaled(p) for p in params], [scaled(g, -1) for g in grads])
    rescaled = fc.rescale_opt_state(state, params[0], SCALES, SPEC, strict=True)
    assert_same(rescaled, expected, rtol=1e-6 if name in ROUNDED else 0.0)


def column(table: Table, slot: str) -> set[str]:
    return {row["leaf"] for row in table if row["slot"] == slot}


@pytest.mark.parametrize("name", CASES)
def test_list_of_untouched_leaves(name: str) -> None:
    state = jax.eval_shape(CASES[name].tx.init, PARAMS)
    table = fc.opt_state_slots(state, PARAMS)
    assert column(table, "untouched") == CASES[name].leaves
    assert not column(table, "unmapped")
    assert table.column("leaf") == list(named_leaves(state))


@pytest.mark.parametrize("name", UNMAPPED)
def test_list_of_unmapped_leaves(name: str) -> None:
    state = jax.eval_shape(UNMAPPED[name].tx.init, PARAMS)
    assert column(fc.opt_state_slots(state, PARAMS), "unmapped") == UNMAPPED[name].leaves


def test_unmapped_leaves_stay_and_are_an_error_by_request() -> None:
    state = optax.novograd(0.1).init(PARAMS)
    new = fc.rescale_opt_state(state, PARAMS, SCALES, SPEC)
    assert all(map(operator.is_, jax.tree.leaves(new), jax.tree.leaves(state)))
    with pytest.raises(SpecError) as error:
        fc.rescale_opt_state(state, PARAMS, SCALES, SPEC, strict=True)
    assert str(error.value) == (
        "6 leaves of the optimizer state can't be rescaled: '0/mu/a/bias': depends on the norm of "
        "a whole leaf; '0/mu/a/kernel': depends on the norm of a whole leaf; '0/mu/b/kernel': "
        "depends on the norm of a whole leaf; '0/nu/a/bias': depends on the norm of a whole leaf; "
        "'0/nu/a/kernel': depends on the norm of a whole leaf; and 1 more. What to do: initialize "
        "their state anew, or rescale them yourself: state._replace(mu=apply_scales(state.mu, "
        "scales, spec, slot='first_moment'))."
    )


class Own(NamedTuple):
    """A state that flaxcle does not know."""

    inner: Any
    average: Any
    norm: jax.Array
    table: jax.Array
    steps: jax.Array


def own_state() -> Own:
    inner = optax.TraceState(drawn("inner"))
    return Own(inner, drawn("average"), jnp.ones(()), jnp.ones(7), jnp.arange(2))


def test_an_unknown_state_is_listed_and_known_ones_inside_it_move() -> None:
    rows = {row["leaf"]: row for row in fc.opt_state_slots(own_state(), PARAMS)}
    slots = {leaf: (row["slot"], row["param"]) for leaf, row in rows.items()}
    assert slots == {
        **{f"inner/trace/{name}": ("first_moment", name) for name in NAMES},
        **{f"average/{name}": ("unmapped", name) for name in NAMES},
        "norm": ("untouched", None),
        "table": ("unmapped", None),
        "steps": ("untouched", None),
    }
    assert rows["table"]["why"] == "in Own, which is no known state"
    assert rows["steps"]["why"] == "a number"


def test_a_namesake_of_an_optax_state_is_unknown() -> None:
    class TraceState(NamedTuple):
        trace: Any

    table = fc.opt_state_slots(TraceState(PARAMS), PARAMS)
    assert set(table.column("slot")) == {"unmapped"}


def test_strict_ignores_params_that_no_scale_moves() -> None:
    state = Own(optax.TraceState(PARAMS), {"b": {"bias": jnp.ones(3)}}, *[jnp.ones(())] * 3)
    new = fc.rescale_opt_state(state, PARAMS, SCALES, SPEC, strict=True)
    assert_same(new._replace(inner=None), state._replace(inner=None))
    assert_same(new.inner.trace, scaled(PARAMS, -1))


def test_params_of_another_network_are_an_error() -> None:
    state = optax.adam(0.1).init({"up": jnp.ones(3)})
    with pytest.raises(PathError, match="not that of these params: none of them is called 'up'"):
        fc.rescale_opt_state(state, PARAMS, SCALES, SPEC)


@pytest.mark.parametrize("wrapped", ["params", "state"])
def test_a_collection_may_be_given_to_either(wrapped: str) -> None:
    boxed, plain = {"params": PARAMS}, PARAMS
    params, trained = (boxed, plain) if wrapped == "params" else (plain, boxed)
    table = fc.opt_state_slots(optax.trace(0.9).init(trained), params)
    prefix = "params/" if wrapped == "params" else ""
    assert table.column("param") == [prefix + name for name in NAMES]


def test_params_may_be_a_single_array() -> None:
    spec = fc.Spec((fc.Group("all", (3,), (Site("", (0,)),)),))
    state = optax.adam(0.1).init(jnp.ones(3))[0]._replace(mu=jnp.ones(3), nu=jnp.ones(3))
    scales = fc.Scales({"all": jnp.array([1.0, 0.0, -1.0])})
    new = fc.rescale_opt_state(state, jnp.ones(3), scales, spec, strict=True)
    expected = state._replace(mu=jnp.array([0.5, 1.0, 2.0]), nu=jnp.array([0.25, 1.0, 4.0]))
    assert_same(new, expected)


def test_factored_moments_follow_the_rule() -> None:
    """The estimate of every entry is divided by s**2, and means along unscaled axes are exact."""
    state = fed(CASES["adafactor"])(*history("of full rank"))
    new = fc.rescale_opt_state(state, PARAMS, SCALES, SPEC)
    for name, exact in (("a", "v_row"), ("b", "v_col")):
        before, after = (estimate(one[0], name) for one in (state, new))
        factor = FACTORS[name]["kernel"] ** -2
        np.testing.assert_allclose(after, before * factor, rtol=1e-6)
        mean = {"v_row": 0, "v_col": 1}[exact]
        assert_same(
            getattr(new[0], exact)[name]["kernel"],
            getattr(state[0], exact)[name]["kernel"] * factor.mean(mean),
        )


def estimate(state: Any, name: str) -> jax.Array:
    """The second moment that Adafactor works with; the larger axis of both kernels is the first."""
    row, column = state.v_row[name]["kernel"], state.v_col[name]["kernel"]
    return row[None, :] * column[:, None] / row.mean()


def test_factored_kernels_of_every_shape() -> None:
    """Square, with a third axis, with an axis of size one; and what looks like a placeholder."""
    shapes = {"square": (4, 4), "conv": (3, 4, 5), "one": (6, 1), "unit": (1,)}
    sites = {
        "s": (Site("square", (0,)), Site("conv", (1,), -1)),
        "t": (Site("conv", (0,)), Site("one", (0,), -1, np.array([0, 0, 1, 1, 2, 2]))),
        "u": (Site("unit", (0,)), Site("one", (1,), 2), Site("square", (1,), -1, np.zeros(4, int))),
    }
    sizes = {"s": 4, "t": 3, "u": 1}
    spec = fc.Spec(tuple(fc.Group(name, (sizes[name],), sites[name]) for name in sites))
    scales = fc.Scales(
        {name: jnp.arange(size, dtype=jnp.float32) - 1.0 for name, size in sizes.items()}
    )
    run = fed(Case(optax.scale_by_factored_rms(min_dim_size_to_factor=1), set()))
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    grads = {name: product(leaf) for name, leaf in drawn("factored", shapes).items()}
    divided = fc.apply_scales(grads, scales, spec, slot="first_moment")
    state, expected = (run([params] * 2, [seen] * 2) for seen in (grads, divided))
    rescaled = fc.rescale_opt_state(state, params, scales, spec, strict=True)
    assert_same(rescaled, expected, rtol=1e-6)
    assert column(fc.opt_state_slots(state, params), "untouched") == {
        "count",
        "v_row/unit",
        "v_col/unit",
        "v/square",
        "v/conv",
        "v/one",
    }


def product(leaf: jax.Array) -> jax.Array:
    """Of rank one along the last two axes."""
    return leaf if leaf.ndim == 1 else leaf[..., :1] * leaf[..., :1, :]


@cache
def optax_states() -> dict[str, set[str]]:
    """The fields of all named tuples that optax defines, by name."""
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "optax"]
    found = [value for module in modules for value in vars(module).values()]
    tuples = [cls for cls in found if isinstance(cls, type) and issubclass(cls, tuple)]
    return {cls.__name__: set(getattr(cls, "_fields", ())) for cls in tuples}


@pytest.mark.parametrize("name", STATES)
def test_the_table_lists_the_fields_that_optax_has(name: str) -> None:
    assert optax_states()[name] <= set(STATES[name].fields)


def test_the_table_lists_no_other_fields() -> None:
    known = set().union(*(optax_states()[name] for name in STATES))
    assert set().union(*(kind.fields for kind in STATES.values())) <= known
