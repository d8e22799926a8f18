"""`fold_batch_norm`: from a function and its variables to variables with idle BatchNorms.

The norms and the layers before them are read from the traced function, not from names. The
invariant: the tree stays (structure, dtypes, shardings), and so does the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flaxcle.apply import shardings_of
from flaxcle.errors import FoldError
from flaxcle.fold.forms import ROOTS
from flaxcle.fold.match import Norm, Use, find_norms
from flaxcle.fold.move import Leaves, Move, compiled
from flaxcle.fold.producer import producer_of
from flaxcle.jaxpr import trace
from flaxcle.jaxpr.frames import Frame, frames
from flaxcle.paths import (
    PyTree,
    is_float,
    leaf_name,
    map_named,
    named_leaves,
    parent,
    strip_collection,
)

_MEAN, _VAR = "mean", "var"


def fold_batch_norm(fn: Callable[..., Any], variables: PyTree, *inputs: Any) -> PyTree:
    """Folds every BatchNorm into the layer before it; tree and model code stay.

    With g = scale / sqrt(var + eps) per channel,

        kernel *= g,   conv bias *= g,   bias := bias - mean * g,
        mean := 0,     var := 1 - eps,   scale := 1

    so that the norm has gain exactly 1. Without a bias of its own the norm's shift goes into the
    convolution's, and without that it stays in the mean. A norm that no single convolution or
    matrix product feeds (before the convolution, behind a concatenation, applied twice) becomes
    the affine map `scale := g`, `bias := bias - mean * g`, `mean := 0`, `var := 1 - eps`.

    A norm is found by its arithmetic, `(x - mean) * rsqrt(var + eps) * scale + bias` in any
    spelling, with leaves for mean and var. One whose leaves also serve elsewhere (running
    averages that the function returns, say), whose mean or var is computed from leaves, or that
    `vmap` stacks beside a convolution, stays as it is. Norms inside `scan` fold layer by layer.

    Args:
        fn: any function `fn(variables, *inputs)`, in inference mode.
        variables: params and statistics in one pytree: a Linen `variables` dict, an `nnx.State`.
        inputs: example inputs; `jax.ShapeDtypeStruct` will do.

    Returns:
        Variables of the same structure, dtypes and shardings. Folding again changes nothing.

    Raises:
        FoldError: a BatchNorm normalizes by batch statistics, or there is none to fold.
        TraceError: no output depends on the variables.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def fn(v, x):
        ...     y = (x @ v["kernel"] - v["mean"]) * jax.lax.rsqrt(v["var"] + 1e-3)
        ...     return y * v["scale"] + v["bias"]
        >>> v = {"kernel": jnp.ones((2, 1)), "mean": jnp.array([1.0]), "var": jnp.array([3.999]),
        ...      "scale": jnp.array([4.0]), "bias": jnp.array([0.5])}
        >>> folded = fold_batch_norm(fn, v, jnp.ones((1, 2)))
        >>> {name: round(leaf.sum().item(), 3) for name, leaf in folded.items()}
        {'bias': -1.5, 'kernel': 4.0, 'mean': 0.0, 'scale': 1.0, 'var': 0.999}

    References:
        Ioffe and Szegedy 2015, "Batch Normalization", arXiv:1502.03167, algorithm 2.
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
        Integer-Arithmetic-Only Inference", arXiv:1712.05877, section 3.2.
    """
    leaves = named_leaves(variables)
    graphs = frames(trace(fn, variables, *inputs))
    norms = find_norms(graphs)
    _check_inference(graphs, norms, leaves)
    moves = [_move(norm, uses, graphs, leaves) for norm, uses in norms.items()]
    changed = {path: leaves[path] for move in moves for path in move.paths}
    new = compiled(tuple(moves), shardings_of(changed))(changed)
    return map_named(lambda path, leaf: new.get(path, leaf), variables)


def _move(norm: Norm, uses: Sequence[Use], graphs: Sequence[Frame], leaves: Leaves) -> Move:
    producer = producer_of(uses[0], graphs) if len(uses) == 1 else None
    move = Move(norm, producer)
    return move if all(is_float(leaves[path]) for path in move.paths) else Move(norm, None)


def _check_inference(graphs: Sequence[Frame], norms: Iterable[Norm], leaves: Leaves) -> None:
    """Refuses batch statistics, and functions without any norm."""
    folded = {path for norm in norms for path in norm.paths}
    statistics = _statistics(leaves)
    for module, paths in statistics.items():
        if not folded.intersection(paths) and _is_training(module, paths, graphs, leaves):
            raise FoldError(
                "a BatchNorm normalizes by the statistics of the batch",
                where=f"{module!r}: its running mean and var do not reach the output as a norm",
                then="trace the model in inference mode: use_running_average=True in Linen, "
                "model.eval() before nnx.split in NNX",
            )
    if not folded:
        raise FoldError(
            "no BatchNorm to fold: looked for (x - mean) * rsqrt(var + eps) * scale + bias, with "
            "mean and var leaves that serve nothing else",
            where=_seen(statistics, leaves),
            then="pass all variables (params and batch_stats) as one tree, and a function that "
            "returns outputs only",
        )


def _statistics(leaves: Leaves) -> dict[str, list[str]]:
    """Modules with leaves called mean and var, and the paths of these."""
    found: dict[str, dict[str, str]] = {}
    for path in leaves:
        if leaf_name(path) in (_MEAN, _VAR):
            found.setdefault(strip_collection(parent(path)), {})[leaf_name(path)] = path
    return {module: list(pair.values()) for module, pair in found.items() if len(pair) == 2}


def _is_training(module: str, paths: list[str], graphs: Sequence[Frame], leaves: Leaves) -> bool:
    """Whether the module serves, while roots are taken of data and none of its variance."""
    own = {path for path in leaves if strip_collection(parent(path)) == module}
    var = next(path for path in paths if leaf_name(path) == _VAR)
    serves = any(
        frame.consumers.get(key)
        for frame in graphs
        for key, leaf in frame.leaves.items()
        if leaf.path in own
    )
    return serves and _has_root_of_data(graphs) and not _has_root_of(var, graphs)


def _has_root_of_data(graphs: Sequence[Frame]) -> bool:
    return any(
        op.primitive in ROOTS and frame.is_dynamic(op.inputs[0])
        for frame in graphs
        for op in frame.graph.flat
    )


def _has_root_of(path: str, graphs: Sequence[Frame]) -> bool:
    """Whether a root is taken of a value that this leaf alone, without data, leads to."""
    for frame in graphs:
        reached = {key for key, leaf in frame.leaves.items() if leaf.path == path}
        for op in frame.graph.flat:
            if any(id(value) in reached for value in op.inputs):
                if op.primitive in ROOTS:
                    return True
                reached |= {id(v) for v in op.outputs if not frame.is_dynamic(v)}
    return False


def _seen(statistics: Leaves, leaves: Leaves) -> str:
    if statistics:
        return (
            f"{len(statistics)} modules have mean and var, the first is {next(iter(statistics))!r}"
        )
    return f"none of the {len(leaves)} leaves is called mean or var beside the other"
