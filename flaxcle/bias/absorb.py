"""High-bias absorption: what a channel always is on top of zero moves on into the next biases.

    b1 -= c,   b2 += W2 c,   c = max(0, min x)      since relu(x - c) + c = relu(x) for x >= c

The ranges of the activations shrink, the function stays. The invariant: a channel where that does
not hold to rounding on the calibration data is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.bias.adds import BiasAdd
from flaxcle.bias.measured import Range, measure
from flaxcle.bias.routes import Route, find_routes
from flaxcle.bias.shifts import Arrival, send
from flaxcle.errors import CalibrationError
from flaxcle.jaxpr import Op, Program, trace
from flaxcle.paths import PyTree, dtype_of, is_float, named_leaves, replace_leaves
from flaxcle.quantize.calibrate import Batches, as_inputs
from flaxcle.spec import Spec
from flaxcle.tables import Table

ABSORBED = "absorbed"
_COLUMNS = ("bias", "channels", "largest", "verdict")
_ROUNDING = 2.0**8


def absorb_bias(
    fn: Callable[..., Any],
    params: PyTree,
    spec: Spec,
    batches: Batches,
    *,
    approximate: bool = False,
) -> PyTree:
    """Moves the part of a bias that a ReLU never cuts into the biases of the layers behind it.

    With c the smallest value of a channel in front of its ReLU, where that is positive,
    `b1 -= c` and `b2 += W2 c`, summed over the taps of W2. Channels then start at zero, and the
    grid of the activation has nothing empty below them.

    On the calibration data that is exact, and checked there by running both. So a channel is
    absorbed only where c reaches nothing but biases of other layers: through ReLU, leaky ReLU,
    PReLU, clips whose bound no value reaches, pools, means, reshapes, concatenation, convolutions
    and matrix products with weights. It stays where there is zero padding on the way (the border
    would be wrong), no bias in front of the next activation, a residual sum, a gate, an output, a
    bias that serves twice, or a loop. `absorbable` says which and why.

    Args:
        fn: any function `fn(params, *inputs)`.
        params: its params, equalized before.
        spec: the biases among the producers of its groups are those that may give.
        batches: calibration inputs, or tuples of inputs; what they never reach, other data may.
        approximate: also absorb up to three standard deviations below the mean, and across zero
            padding (exact then away from the border). The result is not checked.

    Returns:
        Params of the same structure and dtypes; only biases differ.

    Raises:
        CalibrationError: no batch.
        TraceError: no output depends on params.

    Example:
        >>> import jax, jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ (
        ...     p["b"]["kernel"]) + p["b"]["bias"]
        >>> params = {"a": {"kernel": jnp.ones((1, 1)), "bias": jnp.array([5.0])},
        ...           "b": {"kernel": jnp.array([[2.0]]), "bias": jnp.zeros(1)}}
        >>> spec = fc.Spec.from_pairs([("a", "b")], params)
        >>> new = fc.absorb_bias(fn, params, spec, [jnp.array([[-1.0], [1.0]])])
        >>> new["a"]["bias"].tolist(), new["b"]["bias"].tolist()
        ([1.0], [8.0])

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3.
    """
    return _absorb(fn, params, spec, batches, approximate)[0]


def absorbable(
    fn: Callable[..., Any],
    params: PyTree,
    spec: Spec,
    batches: Batches,
    *,
    approximate: bool = False,
) -> Table:
    """Which channels `absorb_bias` absorbs with the same arguments, and why not the others.

    Returns:
        A table with a row for each bias and verdict: how many of its channels, and the largest
        amount c (of those that are refused as well, where it is known).

    Raises:
        CalibrationError: no batch.
        TraceError: no output depends on params.

    Example:
        >>> import jax, jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]
        >>> params = {"a": {"kernel": jnp.ones((1, 1)), "bias": jnp.array([5.0])},
        ...           "b": {"kernel": jnp.array([[2.0]])}}
        >>> spec = fc.Spec.from_pairs([("a", "b")], params)
        >>> print(fc.absorbable(fn, params, spec, [jnp.array([[-1.0], [1.0]])]))
        bias    channels  largest  verdict
        a/bias         1        -  it reaches an output of the network
    """
    return _absorb(fn, params, spec, batches, approximate)[1]


@dataclass
class _Candidate:
    """One bias: per channel the constant to take off, and the verdicts."""

    name: str
    leaf: str
    constant: np.ndarray
    verdicts: np.ndarray
    arrivals: Sequence[Arrival] = ()

    def refuse(self, reason: str, where: Any = True) -> None:
        """Keeps those channels that are not refused yet as they are."""
        self.verdicts = np.where(where & (self.verdicts == ABSORBED), reason, self.verdicts)

    @property
    def absorbed(self) -> np.ndarray:
        return self.verdicts == ABSORBED

    @property
    def moved(self) -> np.ndarray:
        """The constants of the channels that are absorbed, zero for the others."""
        return np.where(self.absorbed, self.constant, 0.0)


def _absorb(
    fn: Callable[..., Any], params: PyTree, spec: Spec, batches: Batches, approximate: bool
) -> tuple[PyTree, Table]:
    data = [as_inputs(batch) for batch in batches]
    if not data:
        raise CalibrationError(
            "absorption needs at least one batch", then="pass an iterable of calibration inputs"
        )
    found, adds = find_routes(trace(fn, params, *data[0]), spec)
    lost = {(adds[route.start].leaf, route.reason): None for route in found if route.reason}

    def find(program: Program) -> tuple[list[Route], Mapping[Op, BiasAdd]]:
        routes, adds = find_routes(program, spec)
        return [route for route in routes if not route.reason], adds

    leaves = {add.name: add.leaf for add in adds.values()}
    ranges = measure(fn, params, data, find)
    candidates = [_judged(name, leaves[name], ranges[name], approximate) for name in sorted(ranges)]
    _follow(fn, params, data[0], find, candidates, approximate)
    if not approximate:
        _prove(fn, params, data, candidates)
    rows = [row for candidate in candidates for row in _rows(candidate)]
    old = named_leaves(params)
    rows += [(leaf, int(np.size(old[leaf])), None, reason) for leaf, reason in lost]
    return _moved(params, candidates), Table(_COLUMNS, tuple(sorted(rows, key=lambda r: r[0])))


def _judged(name: str, leaf: str, range_: Range, approximate: bool) -> _Candidate:
    """Per channel what the data allow to take off."""
    constant = range_.low
    if approximate:
        constant = np.maximum(constant, range_.mean - 3 * range_.std)
    verdicts = np.full(constant.shape, ABSORBED, object)
    candidate = _Candidate(name, leaf, np.maximum(constant, 0.0), verdicts)
    candidate.refuse("it is not always above zero", ~(constant > 0))
    candidate.refuse("a clip cuts it", ~(range_.room >= 0))
    return candidate


def _follow(
    fn: Callable[..., Any],
    params: PyTree,
    inputs: tuple[Any, ...],
    find: Callable[[Program], tuple[list[Route], Mapping[Op, BiasAdd]]],
    candidates: Sequence[_Candidate],
    approximate: bool,
) -> None:
    """Learns what arrives at the next biases; refuses what is not the same everywhere."""
    eps = min((_eps(leaf) for leaf in named_leaves(params).values()), default=0.0)
    arrivals = send(fn, params, inputs, find, {c.name: c.moved for c in candidates})
    for candidate in candidates:
        candidate.arrivals = arrivals[candidate.name]
        for arrival in candidate.arrivals:
            level = _ROUNDING * eps * np.abs(arrival.amount).max(initial=0.0)
            if not arrival.bent <= level:
                candidate.refuse("a maximum over channels compares it")
            elif not approximate and not arrival.spread <= level:
                candidate.refuse("it would be wrong where zeros are padded")


def _eps(leaf: Any) -> float:
    return float(jnp.finfo(dtype_of(leaf)).eps) if is_float(leaf) else 1.0


def _prove(
    fn: Callable[..., Any],
    params: PyTree,
    data: Sequence[tuple[Any, ...]],
    candidates: Sequence[_Candidate],
) -> None:
    """Runs the function before and after; refuses one by one what moves an output."""
    run = jax.jit(fn)
    before = [run(params, *inputs) for inputs in data]

    def holds(chosen: Sequence[_Candidate]) -> bool:
        moved = _moved(params, chosen)
        pairs = zip(data, before, strict=True)
        return all(_same(run(moved, *inputs), outputs) for inputs, outputs in pairs)

    chosen = [candidate for candidate in candidates if candidate.absorbed.any()]
    if not chosen or holds(chosen):
        return
    kept: list[_Candidate] = []
    for candidate in chosen:
        if holds([*kept, candidate]):
            kept.append(candidate)
        else:
            candidate.refuse("the outputs would differ")


def _same(after: PyTree, before: PyTree) -> bool:
    """Whether all outputs agree up to rounding."""
    pairs = zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True)
    return all(_close(np.asarray(one), np.asarray(two)) for one, two in pairs)


def _close(after: np.ndarray, before: np.ndarray) -> bool:
    if not jnp.issubdtype(before.dtype, jnp.floating):
        return bool((after == before).all())
    one, two = after.astype(np.float64), before.astype(np.float64)
    level = _ROUNDING * float(jnp.finfo(before.dtype).eps) * np.abs(two).max(initial=0.0)
    return bool((np.abs(one - two) <= level).all())


def _moved(params: PyTree, candidates: Sequence[_Candidate]) -> PyTree:
    leaves = named_leaves(params)
    new: dict[str, np.ndarray] = {}

    def shift(path: str, amount: np.ndarray) -> None:
        old = new.get(path, np.asarray(leaves[path], np.float64))
        new[path] = old + amount.reshape(old.shape)

    for candidate in candidates:
        if candidate.absorbed.any():
            shift(candidate.leaf, -candidate.moved)
            for arrival in candidate.arrivals:
                shift(arrival.leaf, arrival.amount)
    return replace_leaves(params, new)


def _rows(candidate: _Candidate) -> list[tuple[str, int, float | None, str]]:
    verdicts, constants = candidate.verdicts.ravel(), candidate.constant.ravel()
    rows = []
    for verdict in dict.fromkeys(verdicts.tolist()):
        own = constants[verdicts == verdict]
        rows.append((candidate.leaf, own.size, float(own.max()) or None, verdict))
    return rows
