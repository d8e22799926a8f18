"""`equalize_train_state`: every kind of train state, under jit, under a condition, on a mesh."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from small_net import PARAMS, SPEC, assert_same, drawn, loss, net

import flaxcle as fc
from flaxcle import Group, Site, Spec
from flaxcle.errors import ConfigError

TX = optax.adam(0.1)
X = drawn("inputs", (6, 5))


def adam_state(params: Any, mu: Any = None, nu: Any = None) -> Any:
    """A state of Adam with moments."""
    mu = drawn("mu") if mu is None else mu
    nu = jax.tree.map(jnp.square, drawn("nu")) if nu is None else nu
    first, *rest = TX.init(params)
    return (first._replace(mu=mu, nu=nu), *rest)


STATE = adam_state(PARAMS)
SCALES = fc.solve(PARAMS, SPEC)
NEW_PARAMS = fc.apply_scales(PARAMS, SCALES, SPEC)
NEW_STATE = adam_state(
    PARAMS,
    fc.apply_scales(STATE[0].mu, SCALES, SPEC, slot="first_moment"),
    fc.apply_scales(STATE[0].nu, SCALES, SPEC, slot="second_moment"),
)


class Norms(TrainState):
    """A train state with batch statistics and a moving average of the params."""

    batch_stats: Any
    ema_params: Any


def test_pair() -> None:
    assert_same(fc.equalize_train_state((PARAMS, STATE), SPEC), (NEW_PARAMS, NEW_STATE))


def test_options_are_those_of_solve() -> None:
    params, _ = fc.equalize_train_state((PARAMS, STATE), SPEC, power_of_two=True)
    assert_same(params, fc.equalize(PARAMS, SPEC, power_of_two=True))


def test_flax_train_state() -> None:
    state = TrainState(step=7, apply_fn=net, params=PARAMS, tx=TX, opt_state=STATE)
    expected = state.replace(params=NEW_PARAMS, opt_state=NEW_STATE)
    assert_same(fc.equalize_train_state(state, SPEC), expected)


def test_spec_may_name_the_fields_of_the_train_state() -> None:
    """Batch statistics of a BatchNorm behind `a` belong to the producer."""
    (group,) = SPEC.groups
    sites = [Site(f"params/{site.path}", site.axes, site.power) for site in group.sites]
    spec = Spec((Group("a -> b", (4,), (*sites, Site("batch_stats/a/mean", (0,)))),))
    norms = {"a": {"mean": jnp.ones(4), "var": jnp.ones(4)}}
    state = Norms(7, net, PARAMS, TX, STATE, batch_stats=norms, ema_params=drawn("ema"))
    new = fc.equalize_train_state(state, spec)
    mean = norms["a"]["mean"] * SCALES["a -> b"]
    expected = state.replace(
        params=NEW_PARAMS,
        opt_state=NEW_STATE,
        batch_stats={"a": norms["a"] | {"mean": mean}},
        ema_params=fc.apply_scales(state.ema_params, SCALES, SPEC),
    )
    assert_same(new, expected, rtol=1e-6)


def test_field_that_mirrors_the_params_must_tell_what_it_is() -> None:
    state = Norms(7, net, PARAMS, TX, STATE, batch_stats=PARAMS, ema_params=PARAMS)
    with pytest.raises(ConfigError) as error:
        fc.equalize_train_state(state, SPEC)
    assert str(error.value) == (
        "can't tell whether the field 'batch_stats' of the train state holds params: it has the "
        "same tree. What to do: call it '..._params' if it does, else take the steps one by one: "
        "solve, apply_scales (for gradients with slot='first_moment'), rescale_opt_state."
    )


@pytest.mark.parametrize("state", [PARAMS, (PARAMS,), TrainState], ids=["dict", "single", "class"])
def test_what_is_no_train_state(state: Any) -> None:
    with pytest.raises(ConfigError, match=r"is no train state. What to do: pass \(params, opt_st"):
        fc.equalize_train_state(state, SPEC)


def test_slow_params_move_with_the_fast_ones() -> None:
    slow = drawn("slow")
    tx = optax.lookahead(TX, sync_period=2, slow_step_size=0.5)
    params = optax.LookaheadParams(fast=PARAMS, slow=slow)
    state = tx.init(params)._replace(fast_state=STATE)
    expected = optax.LookaheadParams(NEW_PARAMS, fc.apply_scales(slow, SCALES, SPEC))
    new = fc.equalize_train_state((params, state), SPEC)
    assert_same(new, (expected, state._replace(fast_state=NEW_STATE)))


def test_params_for_evaluation_of_schedule_free_move_like_params() -> None:
    tx = optax.contrib.schedule_free(optax.sgd(0.1), 0.1)
    state = tx.init(PARAMS)._replace(z=drawn("z"))
    params, new = fc.equalize_train_state((PARAMS, state), SPEC, power_of_two=True)
    scales = fc.solve(PARAMS, SPEC, power_of_two=True)
    before = optax.contrib.schedule_free_eval_params(state, PARAMS)
    after = optax.contrib.schedule_free_eval_params(new, params)
    assert_same(after, fc.apply_scales(before, scales, SPEC))


def test_a_spec_that_moves_nothing_changes_nothing() -> None:
    held = Spec(tuple(Group(g.name, g.shape, g.sites, held=True) for g in SPEC.groups))
    pair = (PARAMS, STATE)
    new = fc.equalize_train_state(pair, held)
    assert all(map(lambda one, other: one is other, jax.tree.leaves(new), jax.tree.leaves(pair)))


class Model(nnx.Module):
    """The network in NNX, with a random stream among its variables."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        nnx.update(self, jax.tree.map(jnp.asarray, PARAMS))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.b(jax.nn.relu(self.a(x)))


def trained_pair() -> tuple[Model, Any]:
    model = Model()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    trained(model, optimizer)
    return model, optimizer


def trained(model: Model, optimizer: Any) -> None:
    with jax.numpy_dtype_promotion("standard"):  # which optax relies on
        optimizer.update(model, nnx.grad(lambda m: jnp.mean(m(X) ** 2))(model))


def assert_equalized(new: tuple[Model, Any], old: tuple[Model, Any]) -> None:
    """What the functions for plain trees give for the pure dicts of NNX objects."""
    params = nnx.to_pure_dict(nnx.state(old[0], nnx.Param))
    scales = fc.solve(params, SPEC)
    assert_same(
        nnx.to_pure_dict(nnx.state(new[0], nnx.Param)), fc.apply_scales(params, scales, SPEC)
    )
    before, after = (nnx.as_pure(optimizer.opt_state) for _, optimizer in (old, new))
    assert_same(after, fc.rescale_opt_state(before, params, scales, SPEC))


def test_nnx_model_and_optimizer() -> None:
    old = trained_pair()
    kept = nnx.clone(old)
    new = fc.equalize_train_state(old, SPEC)
    assert_same(nnx.state(old[0], nnx.Param), nnx.state(kept[0], nnx.Param))
    assert_same(old[1].opt_state, kept[1].opt_state)
    assert_equalized(new, old)
    np.testing.assert_allclose(new[0](X), old[0](X), rtol=1e-5, atol=1e-6)
    trained(*new)
    assert int(new[1].step[...]) == 2


def test_nnx_under_jit() -> None:
    old = trained_pair()
    assert_equalized(nnx.jit(partial(fc.equalize_train_state, spec=SPEC))(old), old)


def test_nnx_model_inside_its_optimizer() -> None:
    both = nnx.ModelAndOptimizer(Model(), TX)
    new = fc.equalize_train_state(both, SPEC)
    assert type(new) is type(both)
    assert new.model is not both.model
    assert_equalized((new.model, new), (both.model, both))


def test_jit_with_a_static_spec() -> None:
    equalize = jax.jit(fc.equalize_train_state, static_argnames="spec")
    params, state = equalize((PARAMS, STATE), spec=SPEC)
    assert_same((params, state), (NEW_PARAMS, NEW_STATE), rtol=1e-6)


def test_narrow_dtypes_stay() -> None:
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    state = optax.adam(0.1, mu_dtype=jnp.float16).init(params)
    new = fc.equalize_train_state((params, state), SPEC)
    assert jax.tree.map(jnp.dtype, jax.tree.map(lambda a: a.dtype, new)) == jax.tree.map(
        lambda a: a.dtype, (params, state)
    )


def test_every_n_steps_in_a_jitted_train_step_compiles_once() -> None:
    """The branch that equalizes rescales the optimizer state, too; both give the same types."""
    traces = []

    @jax.jit
    def step(state: tuple[Any, Any], count: jax.Array) -> tuple[Any, Any]:
        traces.append(count)
        with jax.numpy_dtype_promotion("standard"):  # which optax relies on
            updates, opt_state = TX.update(jax.grad(loss)(state[0], X), state[1], state[0])
        state = (optax.apply_updates(state[0], updates), opt_state)
        equalize = partial(fc.equalize_train_state, spec=SPEC, power_of_two=True)
        return lax.cond(count % 2 == 1, equalize, lambda same: same, state)

    state = (PARAMS, TX.init(PARAMS))
    for count in range(4):
        before, state = state, step(state, jnp.asarray(count))
        scales = fc.solve(state[0], SPEC, power_of_two=True)
        assert jax.tree.structure(state) == jax.tree.structure(before)
        if count % 2:  # an equalized network has nothing left to equalize
            assert not scales.log2["a -> b"].any()
    assert len(traces) == 1


def test_moments_keep_their_shardings() -> None:
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    columns = NamedSharding(mesh, PartitionSpec(None, "model"))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = jax.device_put((PARAMS, STATE), whole)
    placed[1][0].mu["a"]["kernel"] = jax.device_put(STATE[0].mu["a"]["kernel"], columns)
    new = fc.equalize_train_state(placed, SPEC)
    assert jax.tree.map(lambda a: a.sharding, new) == jax.tree.map(lambda a: a.sharding, placed)
    assert_same(new, (NEW_PARAMS, NEW_STATE))
