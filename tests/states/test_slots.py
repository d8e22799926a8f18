"""Which leaf of which optimizer moves how: told by the table, proved by feeding an optimizer.

The law: rescaling a state gives the state that the same optimizer holds when all params that it
saw were multiplied by s and all gradients divided by s.
"""

from __future__ import annotations

import operator
import sys
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from optax_cases import CASES, UNMAPPED, column, fed, history
from small_net import NAMES, PARAMS, SCALES, SPEC, assert_same, drawn, scaled

import flaxcle as fc
from flaxcle import Site
from flaxcle.errors import PathError, SpecError
from flaxcle.paths import named_leaves
from flaxcle.states.table import STATES

# Weighing the means of a factored moment rounds, and so does XLA's rsqrt in front of a trace.
ROUNDED = {"adafactor", "rmsprop, momentum", "rmsprop, centered, momentum"}


@pytest.mark.parametrize("name", CASES)
def test_state_is_as_if_it_had_seen_the_equalized_network(name: str) -> None:
    run, (params, grads) = fed(CASES[name]), history(name)
    state = run(params, grads)
    expected = run([scaled(p) for p in params], [scaled(g, -1) for g in grads])
    rescaled = fc.rescale_opt_state(state, params[0], SCALES, SPEC, strict=True)
    assert_same(rescaled, expected, rtol=1e-6 if name in ROUNDED else 0.0)


@pytest.mark.parametrize("name", CASES)
def test_list_of_untouched_leaves(name: str) -> None:
    params = CASES[name].seen(PARAMS)
    state = jax.eval_shape(CASES[name].tx.init, params)
    table = fc.opt_state_slots(state, params)
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
