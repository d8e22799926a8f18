"""What the fields of optax's states hold: the one place to extend when optax gains a state.

    leaf *= s ** (order * unit + fixed)

`s` is the scale of the params, `unit` the exponent of the updates that reach a transformation: -1
for gradients, 0 behind one that divides them by their own magnitude. So a trace behind Adam holds
numbers that no scale moves. The invariant: a state is known by its type and the names of its
fields, never by shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Field(NamedTuple):
    """What one field of a state holds.

    Attributes:
        order: the power of the incoming updates that it accumulates.
        fixed: the power of the params' scale that it carries, whatever comes in.
        why: what else it is, for fields that stay as they are.
        mixed: whether it mixes channels, so that no factor can correct it.
        inner: whether it holds the states of other transformations.
        part: which part of a factored second moment it is.
    """

    order: int = 0
    fixed: int = 0
    why: str = ""
    mixed: bool = False
    inner: bool = False
    part: str = ""


class Kind(NamedTuple):
    """One type of state: its fields, and the unit of the updates that it hands on, if fixed."""

    fields: Mapping[str, Field]
    out: int | None = None


UPDATES = Field(order=1)
SQUARES = Field(order=2)
PARAMS = Field(fixed=1)
SQUARED_STEPS = Field(fixed=2)
COUNT = Field(why="a counter")
FLAG = Field(why="a flag")
KEY = Field(why="a random key")
SETTING = Field(why="a hyperparameter")
NORMALIZED = "free of scale: it averages normalized updates"
AVERAGE = Field(why=NORMALIZED)
INNER = Field(inner=True)
PER_LEAF = Field(mixed=True, why="depends on the norm of a whole leaf")
LOW_RANK = Field(mixed=True, why="in a basis that depends on the gradients")
ACROSS = Field(mixed=True, why="a maximum over other channels")

_WRAPPER = Kind({"inner_state": INNER, "step": COUNT})
_MOMENTS = Kind({"count": COUNT, "mu": UPDATES, "nu": SQUARES}, out=0)

STATES: Mapping[str, Kind] = {
    # one transformation each
    "TraceState": Kind({"trace": UPDATES}),
    "EmaState": Kind({"count": COUNT, "ema": UPDATES}),
    "ApplyEvery": Kind({"count": COUNT, "grad_acc": UPDATES}),
    "ScaleByOptimisticGradientState": Kind({"is_initial_step": FLAG, "previous_gradient": UPDATES}),
    "ScaleByAdamState": _MOMENTS,
    "ScaleByBeliefState": _MOMENTS,
    "ScaleByRmsState": _MOMENTS,
    "ScaleByRmsWithCountState": _MOMENTS,
    "ScaleByRStdDevState": _MOMENTS,
    "ScaleByRStdDevWithCountState": _MOMENTS,
    "ScaleByLionState": _MOMENTS,
    "ScaleByAmsgradState": Kind({**_MOMENTS.fields, "nu_max": SQUARES}, out=0),
    "ScaleByAdanState": Kind(
        {"m": UPDATES, "v": UPDATES, "n": SQUARES, "g": UPDATES, "t": COUNT}, out=0
    ),
    "ScaleByAdemamixState": Kind(
        {"count": COUNT, "count_m2": COUNT, "m1": UPDATES, "m2": UPDATES, "nu": SQUARES}, out=0
    ),
    "MuonState": Kind({"count": COUNT, "mu": UPDATES, "ns_coeffs": SETTING}, out=0),
    "ScaleByRssState": Kind({"sum_of_squares": SQUARES}, out=0),
    "FactoredState": Kind(
        {"count": COUNT, **{part: Field(order=2, part=part) for part in ("v_row", "v_col", "v")}},
        out=0,
    ),
    # Its updates have the unit of params: sqrt(squared steps) times a normalized gradient.
    "ScaleByAdaDeltaState": Kind({"e_g": SQUARES, "e_x": SQUARED_STEPS}, out=1),
    "ScaleByNovogradState": Kind({"count": COUNT, "mu": PER_LEAF, "nu": PER_LEAF}, out=0),
    "GaLoreState": Kind({"count": COUNT, "base_optimizer_state": LOW_RANK, "projector": LOW_RANK}),
    "ScaleBySM3State": Kind({"mu": ACROSS, "nu": AVERAGE}, out=0),
    "ScaleByScheduleState": Kind({"count": COUNT}),
    "AddNoiseState": Kind({"count": COUNT, "rng_key": KEY}),
    "ZeroNansState": Kind({"found_nan": FLAG}),
    # others inside
    "MaskedState": _WRAPPER,
    "ConditionallyTransformState": _WRAPPER,
    "ConditionallyMaskState": _WRAPPER,
    "PartitionState": Kind({"inner_states": INNER}),
    "ApplyIfFiniteState": Kind(
        {
            "notfinite_count": COUNT,
            "last_finite": FLAG,
            "total_notfinite": COUNT,
            "inner_state": INNER,
        }
    ),
    "InjectStatefulHyperparamsState": Kind(
        {"count": COUNT, "hyperparams": SETTING, "hyperparams_states": COUNT, "inner_state": INNER}
    ),
    "MultiStepsState": Kind(
        {
            "mini_step": COUNT,
            "gradient_step": COUNT,
            "inner_opt_state": INNER,
            "acc_grads": UPDATES,
            "skip_state": FLAG,
        }
    ),
    "LookaheadState": Kind({"fast_state": INNER, "steps_since_sync": COUNT}),
    "ScheduleFreeState": Kind(
        {
            "b1": SETTING,
            "weight_sum": COUNT,
            "step_count": COUNT,
            "max_lr": SETTING,
            "base_optimizer_state": INNER,
            "z": PARAMS,
        },
        out=1,
    ),
}


def kind_of_state(node: Any) -> Kind | None:
    """The row of the table for a node of a state, if it is one of optax's."""
    own = type(node)
    return STATES.get(own.__name__) if own.__module__.partition(".")[0] == "optax" else None
