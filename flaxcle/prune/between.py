"""What lies between the layers of a group: the ways that a channel goes, and what is added on them.

A channel may be cut out where all that it does is to reach the group's own consumers, alone or in
sums. As a factor of another activation, as a norm's statistic or as a mask it does more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flaxcle.jaxpr import Op, Program
from flaxcle.jaxpr.frames import Frame, frames
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.jaxpr.layout import VIEWS
from flaxcle.prune.readers import Reader
from flaxcle.spec import Group

ADDITIVE = ("add", "add_any", "sub", "max", "min", "concatenate", "select_n", "clamp")


def ends_in_consumers(group: Group, readers: Mapping[str, Sequence[Reader]]) -> bool:
    """Whether what the producers make goes into the group's consumers, and nowhere else."""
    ends = {reader.op for site in group.consumers for reader in readers[site.path]}
    made = [reader for site in group.producers for reader in readers.get(site.path, ())]
    todo = [(reader.frame, value) for reader in made for value in reader.op.outputs]
    reached: set[int] = set()
    between: list[tuple[Frame, Op]] = []
    while todo:
        frame, value = todo.pop()
        fresh = frame.consumers.get(id(value), ()) if id(value) not in reached else ()
        reached.add(id(value))
        for op in fresh:
            if op in ends:
                continue
            if op is None or op.bodies or op.primitive in CONTRACTIONS:
                return False
            between.append((frame, op))
            todo += [(frame, out) for out in op.outputs]
    return all(_is_alone(frame, op, reached) for frame, op in between)


def _is_alone(frame: Frame, op: Op, reached: set[int]) -> bool:
    """Whether an op multiplies the channels with no activation from elsewhere."""
    others = [v for v in op.inputs if frame.is_dynamic(v) and id(v) not in reached]
    return not others or op.primitive in ADDITIVE


def find_shifts(program: Program) -> set[str]:
    """Leaves that do nothing but shift an activation: biases, and means that are subtracted."""
    only: dict[str, bool] = {}
    for frame in frames(program):
        for key, leaf in frame.leaves.items():
            used = all(_is_shift(frame, op) for op in _behind_views(frame, key))
            only[leaf.path] = only.get(leaf.path, True) and used
    return {path for path, shifts in only.items() if shifts}


def _behind_views(frame: Frame, key: int) -> Iterator[Op | None]:
    """The ops that read a leaf or a view of it."""
    for op in frame.consumers.get(key, ()):
        if op is not None and op.primitive in VIEWS and not frame.is_dynamic(op.inputs[0]):
            yield from _behind_views(frame, id(op.outputs[0]))
        else:
            yield op


def _is_shift(frame: Frame, op: Op | None) -> bool:
    """Whether an op adds something to data, or subtracts it."""
    if op is None or op.primitive not in ("add", "add_any", "sub"):
        return False
    return sum(frame.is_dynamic(value) for value in op.inputs) == 1
