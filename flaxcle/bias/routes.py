"""The ways of a constant that is taken off a bias: through a ReLU, into the next layers' biases.

    relu(x - c) = relu(x) - c        wherever x >= c >= 0,

and from there on every linear op moves the constant like any other value. The invariant: an op
that is not known to do either has no way through; the constant then stays where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from flaxcle.bias.adds import BiasAdd, find_bias_adds
from flaxcle.jaxpr import Op, Program, Value
from flaxcle.jaxpr.frames import Frame, frames
from flaxcle.jaxpr.graph import CONTRACTIONS
from flaxcle.jaxpr.layout import VIEWS
from flaxcle.quantize.flow import follow
from flaxcle.rules.constants import Constants
from flaxcle.spec import Spec

_MOVES = (*VIEWS, "stop_gradient", "expand_dims", "slice", "split", "concatenate")
_SUMS = ("reduce_sum", "reduce_window_sum", "pad", "neg")
_MAXIMA = ("reduce_max", "reduce_window_max")
_ABOVE = {"gt": True, "ge": True, "lt": False, "le": False}


class _State(NamedTuple):
    """How a value carries the constant.

    `kind` is `"same"` where it is still the biased result itself, moved or rectified, `"linear"`
    behind an op that is linear only, `"sign"` for the mask of its positive (`above`) or other
    elements. `read`: whether a convolution or matrix product lies behind it.
    """

    kind: str
    read: bool = False
    of: int = 0
    above: bool = True


class _Lost(Exception):
    """The constant can't be followed any further."""


@dataclass
class Route:
    """The ops that move a constant from the add at `start` to the adds in `ends`.

    `clips` holds the operand with the upper bound by op, each right behind `start`, `taken` the
    case of a select that passes the constant on. `reason` says why there is no way; it is empty
    where there is one.
    """

    start: Op
    moves: list[Op] = field(default_factory=list)
    ends: list[Op] = field(default_factory=list)
    clips: dict[Op, int] = field(default_factory=dict)
    taken: dict[Op, int] = field(default_factory=dict)
    reason: str = ""


def find_routes(program: Program, spec: Spec) -> tuple[list[Route], Mapping[Op, BiasAdd]]:
    """The ways from every bias among the spec's producers, and all bias adds."""
    graphs, adds = frames(program), find_bias_adds(follow(program))
    producers = {site.path for group in spec.groups for site in group.producers}
    free = _free(graphs, adds)
    routes = []
    for op, add in adds.items():
        if add.leaf in producers and op in graphs[0].inside:
            route = _find_route(graphs[0], op, adds, free)
            if add.leaf not in free:
                route = Route(op, reason="the bias serves in more than one place")
            routes.append(route)
        elif add.leaf in producers:
            routes.append(Route(op, reason="it is inside a loop or a branch"))
    return routes, adds


def _free(graphs: Sequence[Frame], adds: Mapping[Op, BiasAdd]) -> set[str]:
    """Biases outside of loops that nothing but one add reads."""
    readers: dict[str, list[Op | None]] = {}
    for frame in graphs:
        for key, leaf in frame.leaves.items():
            readers.setdefault(leaf.path, []).extend(_behind_views(frame, key))
    top = graphs[0].inside
    return {add.leaf for op, add in adds.items() if op in top and readers.get(add.leaf) == [op]}


def _behind_views(frame: Frame, key: int) -> list[Op | None]:
    """The ops that read a leaf or a view of it."""
    found: list[Op | None] = []
    for op in frame.consumers.get(key, ()):
        if op is not None and op.primitive in VIEWS:
            found += _behind_views(frame, id(op.outputs[0]))
        else:
            found.append(op)
    return found


def _find_route(frame: Frame, start: Op, adds: Mapping[Op, BiasAdd], free: set[str]) -> Route:
    """Follows what is added at `start`; only biases in `free` may take it up again."""
    walk = _Walk(frame, Route(start), adds, free)
    try:
        walk.run()
    except _Lost as lost:
        walk.route.reason = str(lost)
    return walk.route


class _Walk:
    def __init__(
        self, frame: Frame, route: Route, adds: Mapping[Op, BiasAdd], free: set[str]
    ) -> None:
        self.frame, self.route, self.adds, self.free = frame, route, adds, free
        self.states = {id(route.start.outputs[0]): _State("same")}
        self.constants = Constants()

    def run(self) -> None:
        ops = self.frame.graph.flat
        for op in ops:
            self.constants.learn(op)
        for op in ops[ops.index(self.route.start) + 1 :]:
            if any(id(value) in self.states for value in op.inputs):
                self._step(op)
        if any(id(value) in self.states for value in self.frame.graph.outputs):
            raise _Lost("it reaches an output of the network")
        if not self.route.ends:
            raise _Lost("nothing reads it")

    def _step(self, op: Op) -> None:
        carried = [k for k, value in enumerate(op.inputs) if id(value) in self.states]
        states = [self.states[id(op.inputs[k])] for k in carried]
        if op.primitive == "select_n":
            self._select(op)
            return
        if any(state.kind == "sign" for state in states):
            raise _Lost(f"its sign goes into {op.primitive}")
        dynamic = sum(self.frame.is_dynamic(value) for value in op.inputs)
        if dynamic > 1 and op.primitive != "concatenate":
            raise _Lost(f"another activation meets it in {op.primitive}")
        if self._ends(op, states[0]):
            self.route.ends.append(op)
            return
        kind, read = self._kind(op, carried[0], states[0])
        same = kind == "same" and all(state.kind == "same" for state in states)
        above = _ABOVE.get(op.primitive, True) == (carried[0] == 0)
        for value in op.outputs:
            new = "same" if same else kind if kind != "same" else "linear"
            self.states[id(value)] = _State(new, read, id(op.inputs[carried[0]]), above)
        if kind != "sign":
            self.route.moves.append(op)

    def _ends(self, op: Op, state: _State) -> bool:
        """Whether the op adds a bias that can take the constant up."""
        add = self.adds.get(op)
        return add is not None and state.read and add.leaf in self.free

    def _kind(self, op: Op, k: int, state: _State) -> tuple[str, bool]:
        """What the result is to the constant."""
        if op.primitive in CONTRACTIONS:
            return "linear", True
        if op.primitive in _MOVES and jnp.issubdtype(op.outputs[0].dtype, jnp.floating):
            return state.kind, state.read
        linear = op.primitive in ("add", "add_any", "sub", "mul", *_SUMS)
        if linear or (op.primitive == "div" and k == 0):
            return "linear", state.read
        if state.kind == "linear":
            raise _Lost(f"no bias takes it in front of {op.primitive}")
        if op.primitive in _ABOVE and self._is_zero(op.inputs[1 - k]):
            return "sign", state.read
        if op.primitive in _MAXIMA or (op.primitive == "max" and self._is_low(op.inputs[1 - k])):
            return "same", state.read
        if self._is_clip(op, k):
            return "same", state.read
        raise _Lost(f"{op.primitive} does not let it pass")

    def _is_clip(self, op: Op, k: int) -> bool:
        """An upper bound, right behind the bias, so that it is known who reaches it."""
        bound = 1 - k if op.primitive == "min" else 2
        lower = op.primitive == "clamp" and k == 1 and self._is_low(op.inputs[0])
        if op.primitive != "min" and not lower:
            return False
        if op.outputs[0].shape != self.route.start.outputs[0].shape or self._has_moved():
            raise _Lost("it is clipped where its channels lie elsewhere")
        self.route.clips[op] = bound
        return True

    def _has_moved(self) -> bool:
        still = ("max", "min", "clamp", "convert_element_type", "copy", "select_n")
        return any(op.primitive not in still for op in self.route.moves)

    def _select(self, op: Op) -> None:
        """`where(x > 0, x, slope * x)`, the spelling of a leaky ReLU."""
        mask = self.states.get(id(op.inputs[0]))
        if mask is None or mask.kind != "sign" or len(op.inputs) != 3:
            raise _Lost("select_n does not let it pass")
        taken, other = (2, 1) if mask.above else (1, 2)
        state = self.states.get(id(op.inputs[other]))
        leaky = state is not None and state.kind == "linear" and state.of == mask.of
        if id(op.inputs[taken]) != mask.of or not (leaky or self._is_zero(op.inputs[other])):
            raise _Lost("select_n does not let it pass")
        self.states[id(op.outputs[0])] = self.states[mask.of]
        self.route.moves.append(op)
        self.route.taken[op] = taken

    def _is_zero(self, value: Value) -> bool:
        array = self.constants.of(value)
        return array is not None and bool((array == 0).all())

    def _is_low(self, value: Value) -> bool:
        array = self.constants.of(value)
        return array is not None and bool(np.all(array <= 0))
