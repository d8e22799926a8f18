"""Operations that move elements: terms move with them.

Elements that a pad or a concatenation adds as zeros suit any scale: along axes where the scale
does not vary it continues into them, elsewhere they get symbols of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flaxcle.jaxpr import Op
from flaxcle.rules import box, scale
from flaxcle.rules.box import Shape
from flaxcle.rules.context import Context, Rule, shape_of
from flaxcle.rules.scale import WILD, Scale, Term, Terms


def reshape(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Same order of elements: also squeeze and expand_dims."""
    old, new = shape_of(op.inputs[0]), shape_of(op.outputs[0])
    if op.primitive == "reshape" and op.params.get("dimensions") is not None:  # transpose first
        order = tuple(op.params["dimensions"])
        terms = scale.transpose(args[0].terms, order)
        return [args[0].keep(scale.reshape(terms, tuple(old[a] for a in order), new))]
    return [args[0].keep(scale.reshape(args[0].terms, old, new))]


def transpose(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Permutes axes."""
    return [args[0].keep(scale.transpose(args[0].terms, op.params["permutation"]))]


def broadcast_in_dim(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Repeats along new axes."""
    old, new = shape_of(op.inputs[0]), shape_of(op.outputs[0])
    dims = op.params["broadcast_dimensions"]
    return [args[0].keep(scale.broadcast(args[0].terms, old, new, dims)), *args[1:0]]


def slice_(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """A window with strides on every axis."""
    shape = shape_of(op.inputs[0])
    strides = op.params["strides"] or (1,) * len(shape)
    parts = zip(op.params["start_indices"], op.params["limit_indices"], strides, strict=True)
    terms = args[0].terms
    for axis, (start, stop, stride) in enumerate(parts):
        if (start, stop, stride) != (0, shape[axis], 1):
            terms = scale.window(terms, axis, start, stop, stride)
    return [args[0].keep(terms)]


def split(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Consecutive windows of one axis."""
    axis, start, out = op.params["axis"], 0, []
    for size in op.params["sizes"]:
        out.append(args[0].keep(scale.window(args[0].terms, axis, start, start + size)))
        start += size
    return out


def rev(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Runs axes backwards."""
    shape, terms = shape_of(op.inputs[0]), args[0].terms
    for axis in op.params["dimensions"]:
        size = shape[axis]
        terms = scale.move(
            terms,
            lambda axes, a=axis, n=size: box.on_axis(axes, a, [box.reversed_axis(axes[a], n)]),
        )
    return [args[0].keep(terms)]


def tile(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Repeats whole axes."""
    shape = shape_of(op.inputs[0])
    reps = tuple(op.params["reps"])
    spread = tuple(n for pair in zip(reps, shape, strict=True) for n in pair)
    terms = scale.broadcast(args[0].terms, shape, spread, range(1, 2 * len(shape), 2))
    return [args[0].keep(scale.reshape(terms, spread, shape_of(op.outputs[0])))]


def concatenate(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Windows side by side."""
    sizes = [int(value.shape[op.params["dimension"]]) for value in op.inputs]
    return [join(args, sizes, shape_of(op.outputs[0]), op.params["dimension"], context)]


def stack(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """The same along a new axis."""
    axis = op.params.get("axis", op.params.get("dimension", 0))
    parts = [arg.keep(scale.insert(arg.terms, axis, 1)) for arg in args]
    return [join(parts, [1] * len(parts), shape_of(op.outputs[0]), axis, context)]


def pad(op: Op, args: Sequence[Scale], context: Context) -> Sequence[Scale]:
    """Adds elements around and between; a fill that is not zero keeps the scale one."""
    value, fill = args
    if value.wild and fill.wild:
        return [WILD]
    shape, terms = shape_of(op.inputs[0]), value.terms
    for axis, (low, high, inner) in enumerate(op.params["padding_config"]):
        size = shape[axis] + max(shape[axis] - 1, 0) * inner
        new = size + low + high
        if (low, high, inner) == (0, 0, 0):
            continue
        moved = scale.place(terms, axis, max(low, 0), inner + 1)
        if low < 0 or high < 0:
            moved = scale.window(moved, axis, max(-low, 0), max(-low, 0) + new)
        padded = (*shape[:axis], new, *shape[axis + 1 :])
        holes = _holes(size, low, high, inner)
        terms = _filled(terms, moved, axis, shape, padded, holes, context) if fill.wild else moved
        shape = padded
    return [value.keep(scale.fuse(terms))]


def _holes(size: int, low: int, high: int, inner: int) -> list[box.Along]:
    """Where the added elements stand; holes between elements are left without a scale."""
    out = []
    if low > 0:
        out.append(box.normal(0, (box.Dim(low, 1, 1),)))
    if high > 0:
        out.append(box.normal(max(low, 0) + size + min(low, 0), (box.Dim(high, 1, 1),)))
    return out


def _filled(
    terms: Terms,
    moved: Terms,
    axis: int,
    old: Shape,
    new: Shape,
    holes: Sequence[box.Along],
    context: Context,
) -> Terms:
    """Continues what does not vary along the axis into the added zeros; the rest gets symbols."""
    steady = tuple(t for t in terms if not scale.depends(t, axis, old))
    if len(steady) == len(terms):
        return (
            scale.broadcast(scale.drop(terms, (axis,)), (), new, ())
            if not new
            else tuple(
                Term(t.power, t.base, (*t.axes[:axis], box.whole(new[axis]), *t.axes[axis + 1 :]))
                for t in terms
            )
        )
    return (*moved, *wild_terms(axis, new, holes, context))


def wild_terms(axis: int, shape: Shape, holes: Sequence[box.Along], context: Context) -> Terms:
    """Fresh symbols for positions of an axis whose elements are zero."""
    out = []
    for hole in holes:
        count = math.prod(dim.length for dim in hole.dims)
        base = context.fresh((count,), (0,)).base
        axes = [box.whole(size) for size in shape]
        axes[axis] = hole
        out.append(Term(1, base, tuple(axes)))
    context.zeros += out
    return tuple(out)


def join(
    parts: Sequence[Scale], sizes: Sequence[int], shape: Shape, axis: int, context: Context
) -> Scale:
    """Parts side by side on an axis; parts of zeros take what the others have in common."""
    if all(part.wild for part in parts):
        return WILD
    common = _common([part for part in parts if not part.wild], sizes, parts, shape, axis)
    out, start = list(common), 0
    for part, size in zip(parts, sizes, strict=True):
        if not part.wild:
            own = scale.place(part.terms, axis, start)
            shared = _stretch(part.terms, axis, shape)
            out += [t for t, s in zip(own, shared, strict=True) if s not in common]
        elif len(common) < max(len(p.terms) for p in parts):
            hole = box.normal(start, (box.Dim(size, 1, 1),))
            out += wild_terms(axis, shape, [hole], context)
        start += size
    return Scale(scale.fuse(out))


def _common(
    tame: Sequence[Scale],
    sizes: Sequence[int],
    parts: Sequence[Scale],
    shape: Shape,
    axis: int,
) -> Terms:
    """Terms that do not vary along the axis and stand in every part."""
    found: list[Terms] = []
    for part, size in zip(parts, sizes, strict=True):
        if part in tame and not part.wild:
            steady = [t for t in part.terms if not box.varies(t.axes[axis], size)]
            found.append(_stretch(steady, axis, shape))
    return tuple(t for t in found[0] if all(t in other for other in found[1:]))


def _stretch(terms: Sequence[Term], axis: int, shape: Shape) -> Terms:
    return tuple(
        Term(t.power, t.base, (*t.axes[:axis], box.whole(shape[axis]), *t.axes[axis + 1 :]))
        for t in terms
    )


RULES: dict[str, Rule] = {
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), reshape),
    "transpose": transpose,
    "broadcast_in_dim": broadcast_in_dim,
    "slice": slice_,
    "split": split,
    "rev": rev,
    "tile": tile,
    "concatenate": concatenate,
    "stack": stack,
    "pad": pad,
}
