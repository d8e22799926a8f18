"""Loops and branches.

A scan over stacked layers is interpreted once per layer, each on its slice, and so is a short loop
over nothing, whose steps may each rescale the carry. Any other loop has a scale that its body
leaves as it is: the carry. Branches agree on the scale of what they return.
"""

from __future__ import annotations

from collections.abc import Sequence

from flaxcle.jaxpr import Graph, Op, Value
from flaxcle.jaxpr.trace import scan_arity
from flaxcle.rules import scale
from flaxcle.rules.context import Context, Rule, Why, shape_of
from flaxcle.rules.layout import join
from flaxcle.rules.scale import Gauge, Scale, Term

MAX_UNROLL = 256
SHORT = 64  # operations


def scan(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Unrolled when its slices of leaves differ, or it has none and is short."""
    n_consts, n_carry = scan_arity(op.params)
    consts, carry, xs = (
        args[:n_consts],
        args[n_consts : n_consts + n_carry],
        args[n_consts + n_carry :],
    )
    (body,), length = op.bodies, op.params["length"]
    for inner, outer in zip(body.inputs[:n_consts], op.inputs, strict=False):
        context.constants.bind(inner, outer)
    shapes = [shape_of(value) for value in op.inputs[n_consts + n_carry :]]
    stacked = any(
        scale.depends(term, 0, shape)
        for x, shape in zip(xs, shapes, strict=True)
        for term in x.terms
    )
    short = not xs and length * len(body.flat) <= SHORT
    if short or (stacked and length <= MAX_UNROLL):
        return _unrolled(op, consts, list(carry), xs, shapes, context)
    why = Why("carry", op)
    slices = [
        Scale(context.constant_along(x.terms, shape, (0,), why), x.wild)
        for x, shape in zip(xs, shapes, strict=True)
    ]
    carry, ys = _steady(body, consts, list(carry), slices, why, context)
    return [*carry, *(y.keep(scale.insert(y.terms, 0, length)) for y in ys)]


def _unrolled(
    op: Op,
    consts: Sequence[Scale],
    carry: list[Scale],
    xs: Sequence[Scale],
    shapes: Sequence[tuple[int, ...]],
    context: Context,
) -> Sequence[Scale]:
    (body,), length = op.bodies, op.params["length"]
    steps = range(length - 1, -1, -1) if op.params["reverse"] else range(length)
    rows: list[list[Scale]] = [[] for _ in op.outputs[len(carry) :]]
    for step in steps:
        slices = [_slice(x, shape, step) for x, shape in zip(xs, shapes, strict=True)]
        out = context.run(body, [*consts, *carry, *slices])
        carry = out[: len(carry)]
        for row, y in zip(rows, out[len(carry) :], strict=True):
            row.append(y.keep(scale.insert(y.terms, 0, 1)))
    if op.params["reverse"]:
        rows = [row[::-1] for row in rows]
    ys = [
        join(row, [1] * length, shape_of(value), 0, context)
        for row, value in zip(rows, op.outputs[len(carry) :], strict=True)
    ]
    return [*carry, *ys]


def _slice(x: Scale, shape: tuple[int, ...], step: int) -> Scale:
    """One layer of a stack; its gauge is its own when all its symbols are."""
    own = all(scale.depends(term, 0, shape) for term in x.terms)
    gauge = Gauge(x.gauge.leaf, (*x.gauge.slices, step)) if x.gauge and own else None
    return Scale(scale.drop(scale.window(x.terms, 0, step, step + 1), (0,)), x.wild, gauge)


def while_(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """The condition only asks; the body leaves the carry's scale as it is."""
    n_cond, n_body = op.params["cond_nconsts"], op.params["body_nconsts"]
    condition, body = op.bodies
    consts, carry = args[n_cond : n_cond + n_body], list(args[n_cond + n_body :])
    for inner, outer in zip(body.inputs[:n_body], op.inputs[n_cond:], strict=False):
        context.constants.bind(inner, outer)
    carry, _ = _steady(body, consts, carry, (), Why("carry", op), context)
    answers = context.run(condition, [*args[:n_cond], *carry])
    context.pin(answers[0], (), Why("compare", op))
    return carry


def _steady(
    body: Graph,
    consts: Sequence[Scale],
    carry: list[Scale],
    xs: Sequence[Scale],
    why: Why,
    context: Context,
) -> tuple[list[Scale], list[Scale]]:
    """A carry that one step leaves unchanged; what starts at zero takes the scale of the step."""
    values = body.outputs[: len(carry)]
    while True:
        with context.rehearsal():
            out = context.run(body, [*consts, *carry, *xs])
        woken = [i for i, arg in enumerate(carry) if arg.wild and not out[i].wild]
        if not woken:
            break
        for i in woken:
            carry[i] = _opened(out[i], values[i], context)
    out = context.run(body, [*consts, *carry, *xs])
    for arg, new, value in zip(carry, out, values, strict=False):
        if not new.wild:
            context.equate(new.terms, arg.terms, shape_of(value), why)
    return carry, out[len(carry) :]


def _opened(value: Scale, like: Value, context: Context) -> Scale:
    """A scale to be found, along the axes on which this one varies."""
    shape = shape_of(like)
    axes = [a for a in range(len(shape)) if any(scale.depends(t, a, shape) for t in value.terms)]
    term: Term = context.fresh(shape, axes)
    return Scale((term,)) if value.terms else Scale()


def cond(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """All branches return the same scales."""
    results = []
    for branch in op.bodies:
        for inner, outer in zip(branch.inputs, op.inputs[1:], strict=True):
            context.constants.bind(inner, outer)
        results.append(context.run(branch, args[1:]))
    return [
        context.same([result[i] for result in results], shape_of(value), Why("branch", op))
        for i, value in enumerate(op.outputs)
    ]


RULES: dict[str, Rule] = {"scan": scan, "while": while_, "cond": cond}
