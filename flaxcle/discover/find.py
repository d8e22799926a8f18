"""`find_spec`: from a function to its Spec.

    trace -> scales of all values -> equations -> atoms -> classes -> basis -> groups

The invariant: only shapes and dtypes are read, and the cost grows with the number of operations
and of distinct channel ranges, not with the sizes of the arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flaxcle.discover.atoms import Atoms, quotient
from flaxcle.discover.basis import Basis, touches
from flaxcle.discover.classes import Classes, Combination
from flaxcle.discover.dead import dead_classes, without
from flaxcle.discover.gauge import redundant, settled
from flaxcle.discover.groups import make_groups
from flaxcle.discover.interpret import Interpreter, state
from flaxcle.discover.reasons import blocked_axes
from flaxcle.discover.roles import find_usage
from flaxcle.discover.symbols import Block, leaf_scales
from flaxcle.jaxpr import trace
from flaxcle.paths import PyTree
from flaxcle.spec import Spec


def find_spec(fn: Callable[..., Any], params: PyTree, *inputs: Any) -> Spec:
    """All the positive scales that leave `fn(params, *inputs)` unchanged.

    Args:
        fn: any function of a params pytree and arrays, in the mode that will be quantized.
        params: the params; arrays or `jax.ShapeDtypeStruct`. All float leaves may be scaled.
        inputs: example inputs, arrays or `jax.ShapeDtypeStruct`; their values are not read.

    Returns:
        The spec: its groups are a basis of all scales, `blocked` tells why other axes can't move.

    Raises:
        TraceError: no output depends on params.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def fn(p, x):
        ...     return jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"]
        >>> shapes = {"w1": (3, 8), "b1": (8,), "w2": (8, 2)}
        >>> params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
        >>> spec = find_spec(fn, params, jax.ShapeDtypeStruct((5, 3), jnp.float32))
        >>> [(site.path, site.axes, int(site.power)) for site in spec.groups[0].sites]
        [('w1', (1,), 1), ('b1', (0,), 1), ('w2', (0,), -1)]
    """
    program = trace(fn, params, *inputs)
    interpreter = Interpreter()
    context = interpreter.context
    scales, blocks = leaf_scales(program, find_usage(program).roles, context)
    state(program, interpreter, scales)
    borders = [block.base for block in blocks] + [block.base + block.size for block in blocks]
    atoms, rows = quotient(context.symbols, borders, context.equations)
    classes = Classes(atoms.sizes.tolist())
    basis = Basis(classes, classes.solve(rows), touches(blocks, atoms, classes))
    moves = settled(blocks, atoms, _moves(blocks, atoms, classes, basis), classes.sizes)
    moves = without(dead_classes(context, blocks, atoms, classes, rows), moves)
    spare = redundant(blocks, atoms, moves, classes.sizes)
    groups = make_groups(blocks, atoms, moves, classes.sizes, spare)
    blocked = blocked_axes(blocks, atoms, moves, classes, context.whys, groups)
    used = {block.leaf for block in blocks}
    unused = tuple(path for path in program.params if path not in used)
    return Spec(groups, blocked, unused)


def _moves(
    blocks: list[Block], atoms: Atoms, classes: Classes, basis: Basis
) -> dict[int, Combination]:
    """Every atom of a leaf as a combination of free classes."""
    out: dict[int, Combination] = {}
    for block in blocks:
        for atom in atoms.within(block.base, block.size):
            root, ratio = classes.find(atom)
            out[atom] = {free: p * ratio for free, p in basis.combination(root).items()}
    return out
