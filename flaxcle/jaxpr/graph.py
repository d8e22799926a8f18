"""A traced function as data: ops between values.

Calls (jit, remat, custom_jvp, ...) stay as ops with a `body`, but share the caller's values, so
that `Graph.flat` is the whole function as one list. Loops and branches have graphs of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from pathlib import PurePath
from typing import Any

CONTRACTIONS = ("conv_general_dilated", "dot_general")
LOOPS = ("scan", "while")
REMAT = ("remat2", "remat", "checkpoint")
_PACKAGE = PurePath(__file__).parent.parent
_LIBRARIES = ("site-packages", "dist-packages", str(_PACKAGE), "<frozen")


@dataclass(eq=False)
class Value:
    """One array that flows through the function; `const` is set for literals and closures."""

    shape: tuple[int, ...]
    dtype: Any
    const: Any = None

    @property
    def known(self) -> bool:
        """Whether the value does not depend on params or inputs."""
        return self.const is not None


@dataclass(eq=False)
class Op:
    """One equation.

    Attributes:
        primitive: its name, `'conv_general_dilated'`.
        params: its static parameters.
        inputs, outputs: the values.
        scope: module path (`'ResNet/Conv_0'`, empty for NNX) and `calls`, the named functions
            around it (`('relu6',)`).
        body: the ops of a call, sharing this graph's values.
        bodies: the graphs of a loop or of branches, with inputs of their own.
    """

    primitive: str
    params: Mapping[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    scope: str
    calls: tuple[str, ...]
    eqn: Any = field(repr=False)
    sources: tuple[Any, ...] = field(repr=False, default=())
    body: tuple[Op, ...] | None = field(repr=False, default=None)
    bodies: tuple[Graph, ...] = field(repr=False, default=())

    @cached_property
    def source(self) -> str:
        """`file.py:line (function)` of the model's code, innermost first; libraries are skipped."""
        frames = (frame for info in reversed(self.sources) for frame in _frames(info))
        own = (frame for frame in frames if not any(part in frame[0] for part in _LIBRARIES))
        file, line, function = next(own, ("", 0, ""))
        return f"{PurePath(file).name}:{line} ({function})" if file else ""

    @cached_property
    def within(self) -> tuple[str, ...]:
        """Named calls and library functions around it, innermost first, up to the model's code."""
        frames = [frame for info in reversed(self.sources) for frame in _frames(info)]
        inner = takewhile(lambda frame: any(part in frame[0] for part in _LIBRARIES), frames)
        return (*reversed(self.calls), *(function.rpartition(".")[2] for _, _, function in inner))

    def bind(self, *operands: Any) -> list[Any]:
        """Runs the operation as jax recorded it."""
        bound = self.eqn.primitive.get_bind_params(dict(self.eqn.params))
        subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
        out = self.eqn.primitive.bind(*subfuns, *operands, **params)
        return list(out) if self.eqn.primitive.multiple_results else [out]


@dataclass(eq=False)
class Graph:
    """Ops in program order between input and output values."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    ops: tuple[Op, ...]

    @cached_property
    def flat(self) -> tuple[Op, ...]:
        """The ops that some output needs, calls inlined; loops and branches stay whole."""
        needed = {id(value) for value in self.outputs}
        live: list[Op] = []
        for op in reversed(list(_inline(self.ops))):
            if any(id(value) in needed for value in op.outputs) or op.eqn.effects:
                live.append(op)
                needed.update(id(value) for value in op.inputs)
        return tuple(reversed(live))


def _frames(info: Any) -> Iterator[tuple[str, int, str]]:
    for frame in getattr(info.traceback, "frames", ()):
        yield frame.file_name, frame.line_num, frame.function_name


def _inline(ops: Sequence[Op]) -> Iterator[Op]:
    for op in ops:
        if op.body is None:
            yield op
        else:
            yield from _inline(op.body)
