"""The optimizer state that belongs to equalized params.

    leaf *= s ** exponent        exponent: see `flaxcle.states.table`

`s` is what the scales multiply the leaf's param by. The invariant: structure and dtypes stay, and
leaves that don't move are the same objects.
"""

from __future__ import annotations

from collections.abc import Sequence

import optax

from flaxcle.apply import Move, check_scales, moved
from flaxcle.errors import SpecError
from flaxcle.paths import PyTree, map_named, named_leaves
from flaxcle.spec import Scales, Spec, check_fit
from flaxcle.states.leaf import StateLeaf
from flaxcle.states.read import read_state
from flaxcle.tables import Table


def opt_state_slots(opt_state: PyTree, params: PyTree) -> Table:
    """Lists what `rescale_opt_state` does to every leaf of an optimizer state.

    If params are multiplied by s, gradients of the same loss are divided by s. A state is made to
    what it would be had the optimizer seen these params and gradients all along:

    | slot | times | examples |
    |---|---|---|
    | `params` | s | slow params, `schedule_free`'s `z` |
    | `first_moment` | 1/s | Adam's `mu`, momentum, accumulated gradients |
    | `second_moment` | 1/s² | Adam's `nu`, Adafactor's `v_row` and `v_col` |
    | `squared_update` | s² | AdaDelta's `e_x` |
    | `untouched` | 1 | counters; averages of normalized updates, such as RMSProp's momentum |
    | `unmapped` | 1 | what can't be corrected, or is not known: `why` says what |

    A leaf is known by the type of its optax state and the name of its field, never by its shape. In
    states that are not known, single numbers are taken to be right as they are.

    Args:
        opt_state: what `tx.init` or `tx.update` of an optax optimizer returned.
        params: the params that it optimizes.

    Returns:
        A table with the columns `leaf`, `slot`, `param` (which it mirrors) and `why`.

    Raises:
        PathError: the state is that of other params.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"a": jnp.ones(2)}
        >>> print(opt_state_slots(optax.adam(0.1).init(params), params))
        leaf     slot           param  why
        0/count  untouched      -      a counter
        0/mu/a   first_moment   a
        0/nu/a   second_moment  a
    """
    rows = read_state(opt_state, trained_params(params))
    columns = ("leaf", "slot", "param", "why")
    return Table(columns, tuple((row.path, row.slot, row.param, row.why) for row in rows))


def rescale_opt_state(
    opt_state: PyTree, params: PyTree, scales: Scales, spec: Spec, *, strict: bool = False
) -> PyTree:
    """The optimizer state that belongs to `apply_scales(params, scales, spec)`.

        leaf *= s ** exponent       first moments -1, second moments -2, copies of params 1

    With g the gradients, the equalized network's are g / s, and the state becomes what the same
    optimizer would hold had it seen s * params and g / s all along. `opt_state_slots` lists which
    leaf is what. With powers of two it is exact.

    Training goes on consistently, but not identically: few updates follow the params' scale s. For
    the old trajectory times s, entry by entry,

    * SGD, with momentum or without, needs the learning rate times s²;
    * Adam, RMSProp, Adagrad, Lion and others that divide gradients by their own magnitude need it
      times s. With the old one their update is unchanged but for `eps`, which acts like `eps * s`,
      or `eps * s²` inside a root;
    * AdaDelta needs nothing, up to its `eps`;
    * what looks at whole leaves (clipping by norm, LAMB, LARS, Muon, Adafactor) has no such rule.

    Decoupled weight decay follows by itself, if its learning rate stays what it was.

    A factored second moment is kept as two means. Where a scale does not vary along the axis of
    a mean, the mean moves exactly; where it does, the mean moves like that of a matrix of rank one,
    which keeps the estimate of each entry exactly 1/s² of what it was.

    `adamax` can't be told from Adam, whose state type it uses: rescale its `nu` yourself, with
    `apply_scales(nu, scales, spec, slot="first_moment")`.

    Args:
        opt_state: the state before.
        params: the params before or after equalization (only names and shapes are read).
        scales: what the params are multiplied by.
        spec: the table.
        strict: raises when a leaf of a scaled param can't be mapped, instead of leaving it.

    Returns:
        A tree of the same structure and dtypes.

    Raises:
        SpecError, PathError, WeightError: the spec does not fit the params, or the scales belong
            to another spec; with `strict`, a leaf can't be mapped.
        PathError: the state is that of other params.

    Example:
        >>> import jax.numpy as jnp
        >>> from flaxcle import Group, Site
        >>> spec = Spec((Group("a", (2,), (Site("a", (0,)),)),))
        >>> params, scales = {"a": jnp.ones(2)}, Scales({"a": jnp.array([1.0, -1.0])})
        >>> state = optax.TraceState({"a": jnp.array([3.0, 3.0])})
        >>> rescale_opt_state(state, params, scales, spec).trace["a"].tolist()
        [1.5, 6.0]
    """
    params = trained_params(params)
    check_fit(spec, params)
    check_scales(scales, spec)
    rows = [row for row in read_state(opt_state, params) if row.param in {None, *spec.paths}]
    if strict:
        _check_mapped(rows)
    mapped = ((row, row.param, row.exponent) for row in rows if row.param is not None)
    moves = [Move(row.path, param, power, row.mean) for row, param, power in mapped if power]
    new = moved(named_leaves(opt_state), tuple(moves), scales, spec) if moves else {}
    return map_named(lambda path, leaf: new.get(path, leaf), opt_state)


def trained_params(params: PyTree) -> PyTree:
    """The params that gradients are taken for: the fast ones of a lookahead optimizer."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def _check_mapped(rows: Sequence[StateLeaf]) -> None:
    bad = [row for row in rows if row.exponent is None]
    if bad:
        listed = "; ".join(f"{row.path!r}: {row.why}" for row in bad[:5])
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise SpecError(
            f"{len(bad)} leaves of the optimizer state can't be rescaled",
            where=listed + more,
            then="initialize their state anew, or rescale them yourself: "
            "state._replace(mu=apply_scales(state.mu, scales, spec, slot='first_moment'))",
        )
