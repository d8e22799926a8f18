"""Constants that the function computes for itself: indices, masks, permutations.

Only what a rule asks for is computed, with NumPy: which rows a gather reads, where a slice starts,
whether a fill value is zero. The invariant: `None` means 'not known', never 'anything goes'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxcle.jaxpr import Op, Value

MAX_SIZE = 1 << 22
Fold = Callable[[Mapping[str, Any], Sequence[np.ndarray], tuple[int, ...]], np.ndarray]


class Constants:
    """Remembers which operation made a value, and folds on request."""

    def __init__(self) -> None:
        self._makers: dict[int, Op] = {}
        self._alias: dict[int, Value] = {}
        self._known: dict[int, np.ndarray | None] = {}
        self._wild: dict[int, bool] = {}
        self._alive: list[Value] = []

    def learn(self, op: Op) -> None:
        """Enters the operation that makes a value."""
        for value in op.outputs:
            self._makers[id(value)] = op

    def bind(self, inner: Value, outer: Value) -> None:
        """An input of a nested graph is this value of the outer one."""
        self._alias[id(inner)] = outer

    def of(self, value: Value) -> np.ndarray | None:
        """The array, when it depends on neither params nor inputs and is cheap to compute."""
        if id(value) not in self._known:
            self._known[id(value)] = self._fold(value)
            self._alive.append(value)
        return self._known[id(value)]

    def _fold(self, value: Value) -> np.ndarray | None:
        if value.known:
            return _array(value)
        if id(value) in self._alias:
            return self.of(self._alias[id(value)])
        op = self._makers.get(id(value))
        if op is None or op.primitive not in FOLDS or np.prod(value.shape) > MAX_SIZE:
            return None
        operands = []
        for operand in op.inputs:
            array = self.of(operand)
            if array is None:
                return None
            operands.append(array)
        shape = tuple(int(n) for n in value.shape)
        with np.errstate(all="ignore"):
            made = np.asarray(FOLDS[op.primitive](op.params, operands, shape))
        return made.astype(value.dtype, copy=False) if made.shape == shape else None

    def is_wild(self, value: Value) -> bool:
        """Whether a known array is zero or infinite everywhere."""
        if id(value) not in self._wild:
            self._wild[id(value)] = _is_wild(_array(value)) if value.known else False
            self._alive.append(value)
        return self._wild[id(value)]


def _array(value: Value) -> np.ndarray | None:
    try:
        return np.asarray(value.const)
    except TypeError:  # a PRNG key
        return None


def _is_wild(array: np.ndarray | None) -> bool:
    if array is None or array.dtype.kind not in "fiubVc" or not array.size:
        return False
    first = float(array.flat[0].real)
    if first and not np.isinf(first):
        return False
    plain = array.astype(np.float32) if array.dtype.kind == "V" else array
    return bool(((plain == 0) | np.isinf(plain)).all())


def _binary(function: Callable[..., Any]) -> Fold:
    return lambda params, args, shape: np.broadcast_to(function(*args), shape)


def _broadcast_in_dim(
    params: Mapping[str, Any], args: Sequence[np.ndarray], shape: tuple[int, ...]
) -> np.ndarray:
    view = [1] * len(shape)
    for axis, size in zip(params["broadcast_dimensions"], args[0].shape, strict=True):
        view[axis] = size
    return np.broadcast_to(args[0].reshape(view), shape)


def _iota(params: Mapping[str, Any], _: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    axis = params["dimension"]
    view = [-1 if i == axis else 1 for i in range(len(shape))]
    return np.broadcast_to(np.arange(shape[axis]).reshape(view), shape)


def _slice(params: Mapping[str, Any], args: Sequence[np.ndarray], _: Any) -> np.ndarray:
    strides = params["strides"] or (1,) * args[0].ndim
    parts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return args[0][tuple(slice(*part) for part in parts)]


def _quotient(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Division as jax does it: that of integers rounds towards zero."""
    if one.dtype.kind == "f":
        return one / two
    safe = np.where(two == 0, 1, two)
    return np.sign(one) * np.sign(safe) * (np.abs(one) // np.abs(safe))


def _select(_: Any, args: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    which = np.broadcast_to(args[0], shape).astype(np.int64)
    return np.choose(which, [np.broadcast_to(case, shape) for case in args[1:]])


def _unary(function: Callable[[np.ndarray], Any]) -> Fold:
    return lambda params, args, shape: function(args[0])


def _reshape(_: Any, args: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return args[0].reshape(shape)


FOLDS: dict[str, Fold] = {
    "iota": _iota,
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": lambda p, a, s: a[0].transpose(p["permutation"]),
    "rev": lambda p, a, s: np.flip(a[0], p["dimensions"]),
    "slice": _slice,
    "concatenate": lambda p, a, s: np.concatenate(a, p["dimension"]),
    "stack": lambda p, a, s: np.stack(a, p.get("axis", p.get("dimension", 0))),
    "select_n": _select,
    "clamp": lambda p, a, s: np.clip(a[1], a[0], a[2]),
    "cumsum": lambda p, a, s: (
        np.flip(np.cumsum(np.flip(a[0], p["axis"]), p["axis"]), p["axis"])
        if p["reverse"]
        else np.cumsum(a[0], p["axis"])
    ),
    "argsort": lambda p, a, s: np.argsort(a[0], kind="stable"),
    "integer_pow": lambda p, a, s: a[0] ** p["y"],
    "square": _unary(np.square),
    "sqrt": _unary(np.sqrt),
    "exp": _unary(np.exp),
    "log": _unary(np.log),
    "sin": _unary(np.sin),
    "cos": _unary(np.cos),
    "add": _binary(np.add),
    "add_any": _binary(np.add),
    "sub": _binary(np.subtract),
    "mul": _binary(np.multiply),
    "div": _binary(_quotient),
    "rem": _binary(np.fmod),
    "max": _binary(np.maximum),
    "min": _binary(np.minimum),
    "pow": _binary(np.power),
    "eq": _binary(np.equal),
    "ne": _binary(np.not_equal),
    "lt": _binary(np.less),
    "le": _binary(np.less_equal),
    "gt": _binary(np.greater),
    "ge": _binary(np.greater_equal),
    "and": _binary(np.bitwise_and),
    "or": _binary(np.bitwise_or),
    "xor": _binary(np.bitwise_xor),
    "not": _unary(np.invert),
    "neg": _unary(np.negative),
    "sign": _unary(np.sign),
    "abs": _unary(np.abs),
    "floor": _unary(np.floor),
    "ceil": _unary(np.ceil),
    "convert_element_type": lambda p, a, s: a[0].astype(p["new_dtype"]),
    "copy": lambda p, a, s: a[0],
    "copy_p": lambda p, a, s: a[0],
    "stop_gradient": lambda p, a, s: a[0],
}
