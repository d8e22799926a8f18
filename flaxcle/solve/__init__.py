"""`solve`: the scales at which every group is in balance.

The way of a call: options are checked, the spec is checked against the leaves, a static plan says
what moves (`plan`, `layout`), weights are reduced to cores, guards weigh and bound (`guards`), and
the fixpoint is found (`fixpoint`, `search`). The invariant: nothing is computed before everything
that can be checked without values has been checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flaxcle.errors import CalibrationError, WeightError
from flaxcle.paths import PyTree, dtype_of, shape_of
from flaxcle.ranges import core_of, mesh_of, replicated
from flaxcle.solve.entries import known_entries, listed_magnitudes
from flaxcle.solve.fixpoint import Problem, Solution, converge
from flaxcle.solve.guards import Balance, balance_of
from flaxcle.solve.layout import Layout, make_layouts
from flaxcle.solve.options import Magnitude, Numbers, Options, Ranges, checked, magnitudes
from flaxcle.solve.plan import Plan, input_of, make_plan
from flaxcle.solve.search import first_reading
from flaxcle.spec import Scales, Spec, check_fit
from flaxcle.spec.parts import Part, parts_of


def solve(
    params: PyTree,
    spec: Spec,
    *,
    ranges: Ranges = "weights",
    alpha: float = 0.5,
    granularity: Literal["per_tensor", "per_channel"] = "per_tensor",
    power_of_two: bool = False,
    max_scale: float = 2.0**10,
    tol: float = 1e-3,
    max_sweeps: int = 200,
) -> Scales:
    """Finds the scales with which no channel stands out of its tensor.

    With `r` the base-2 logarithm of a channel's range at scale 1 of its own group, and all other
    groups at theirs, every group satisfies

        log2 scale = (1 - alpha) * mean r_in - alpha * mean r_out

    `r_out` where the channel is made (kernels with a positive power), `r_in` where it is read. For
    a pair and `alpha=1/2` both ranges become `sqrt(range_out * range_in)`. On a side without a
    kernel, such as a norm, the larger of its vectors counts. Biases and bounds are moved, but do
    not count. A channel that is numerically zero on one side keeps scale 1.

    With a calibration, the input of each kernel is known, and where it is, `r_act`, the logarithm
    of `max |x|` over the data, takes the place of `r_out`, and `r_in` is the largest of all
    readers: the producer is multiplied by

        scale = max |W|**(1 - alpha) / max |x|**alpha

    which is the inverse of SmoothQuant's. A scale multiplies the input of every kernel that it
    divides, so that groups which share a kernel meet at a common fixpoint here, too. Groups whose
    kernels have no record are balanced by weights.

    Args:
        params: the pytree of weights; may be tracers, sharded, or NumPy arrays.
        spec: which scales may move. Groups that are `held` stay at 1.
        ranges: where the ranges come from: `"weights"`, or a `Calibration` of the function at
            these params; with `calibration.averaged()` the mean of `|x|` counts, as in AWQ.
        alpha: weight of the ranges where a channel is made; 1/2 is cross-layer equalization. With
            a calibration it moves difficulty from activations to weights: at 1 all channels of
            an activation get equal ranges, at 0 the rows of the weights do.
        granularity: of the weights' quantizer. With a step for each output channel there is no
            tensor to stand out of, and balancing the weights was measured to cost 3 dB: for
            `"per_channel"` only groups with calibrated kernels move.
        power_of_two: rounds the scales to powers of two, which makes applying them exact.
        max_scale: no scale is larger, or smaller than its inverse.
        tol: no balance would change a scale by a larger factor than `1 + tol`.
        max_sweeps: limit for the number of times that the weights are read.

    Returns:
        The scales of all groups, where a guard kept 1, the residual and the sweeps.

    Raises:
        ConfigError: an option is out of its range.
        CalibrationError: the calibration has no channels, or those of other params.
        SpecError, PathError: the spec does not fit the params; see `check_fit`.
        WeightError: a leaf is not of a real float dtype, or holds NaN or infinity. Values are
            looked at only when they are concrete; under `jit` such channels keep scale 1.

    Example:
        >>> from flaxcle import Group, Site
        >>> params = {"a": jnp.array([[8.0, 1.0]]), "b": jnp.array([[2.0], [4.0]])}
        >>> pair = Group("a -> b", (2,), (Site("a", (1,)), Site("b", (0,), -1)))
        >>> solve(params, Spec((pair,)))["a -> b"].tolist()
        [0.5, 2.0]

    References:
        Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
        Correction", eq. 11. Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438, eq. 4. Lin et al.
        2024, "AWQ", arXiv:2306.00978, section 3.2 (mean magnitudes).
    """
    options = checked(Options(ranges, alpha, granularity, power_of_two, max_scale, tol, max_sweeps))
    leaves = check_fit(spec, params)
    known = magnitudes(ranges)
    plan = plan_of(spec, leaves, known, granularity)
    if not plan.terms:
        return _at_one(plan)
    seen: dict[str, Any] = {}
    solutions, checks = [], []
    for part in parts_of(plan.moving, leaves):
        own = plan_of(part.spec, part.leaves(leaves), part.leaves(known), granularity)
        used = _used(own, part.leaves(leaves), part.leaves(known))
        found, finite = _solve(*used, options.numbers, own)
        solutions.append(_renamed(found, part))
        seen |= {part.paths.get(path, path): leaf for one in used for path, leaf in one.items()}
        checks.append(finite)
    _check_finite(seen, checks)
    return _joined(solutions, plan)


def plan_of(
    spec: Spec, leaves: Mapping[str, Any], known: Mapping[str, Magnitude], granularity: str
) -> Plan:
    """The plan for leaves that a spec fits, and for what is known of their inputs."""
    shapes = {path: shape_of(leaves[path]) for path in spec.paths}
    known = {path: one for path, one in known.items() if path in shapes}
    for path, one in known.items():
        _check_input(path, one, shapes[path])
        shapes[input_of(path)] = shape_of(one.peak)
    axes = tuple((path, tuple(one.axes)) for path, one in known.items())
    return make_plan(spec, tuple(shapes.items()), axes, granularity == "per_tensor")


def _used(
    plan: Plan, leaves: Mapping[str, Any], known: Mapping[str, Magnitude]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights and the peaks of their inputs that the plan reads."""
    peaks = {input_of(path): one.peak for path, one in known.items()}
    weights = {path: leaves[path] for path in plan.leaves if path in leaves}
    return weights, {path: peak for path, peak in peaks.items() if path in plan.leaves}


def _check_input(path: str, known: Magnitude, shape: tuple[int, ...]) -> None:
    inside = all(axis < len(shape) for axis in known.axes)
    if not inside or shape_of(known.peak) != tuple(shape[axis] for axis in known.axes):
        raise CalibrationError(
            "the calibration belongs to another network",
            where=f"{path!r} has shape {shape}, its input {shape_of(known.peak)} along axes "
            f"{known.axes}",
            then="calibrate the function with these params",
        )


@partial(jax.jit, static_argnames="plan")
def _solve(
    weights: dict[str, Any], inputs: dict[str, Any], options: Numbers, plan: Plan
) -> tuple[Scales, jax.Array]:
    """The scales, and whether all ranges are finite."""
    scales, finite = _at_one(plan), jnp.asarray(True)
    mesh = mesh_of(*weights.values())
    leaves = weights | {path: replicated(peak, mesh) for path, peak in inputs.items()}
    cores = {p: core_of(leaves[p], leaf.axes, leaf.folds) for p, leaf in plan.leaves.items()}
    for layout in make_layouts(plan):
        reading, starts = first_reading(layout, cores, mesh)
        magnitudes = listed_magnitudes(layout, cores, mesh)
        known = [known_entries(layout, c, starts, magnitudes) for c in layout.colours]
        balance = balance_of(layout, starts, _largest(layout, leaves), options)
        problem = Problem(layout, cores, tuple(known), balance)
        solution = converge(problem, reading, options.tol, options.max_sweeps)
        whole = _whole(layout, balance, solution.x)
        solution = solution._replace(x=jnp.where(options.power_of_two, whole, solution.x))
        scales = _with(scales, layout, solution, balance.kept)
        finite &= jnp.all(starts < jnp.inf)
    return scales, finite


def _largest(layout: Layout, leaves: Mapping[str, Any]) -> np.ndarray:
    """For each range at scale 1 the log2 of the largest number that its leaf can hold."""
    tops = {path: math.log2(float(jnp.finfo(dtype_of(leaf)).max)) for path, leaf in leaves.items()}
    sizes = [layout.size_of(link) for link in layout.starts]
    return np.repeat([tops[link.leaf] for link in layout.starts], sizes).astype(np.float32)


def _whole(layout: Layout, balance: Balance, x: jax.Array) -> jax.Array:
    """Rounded so that every factor is a power of two, and still within bounds."""
    groups = [layout.plan.spec.groups[number] for number in layout.offsets]
    steps = [math.lcm(*(site.power.denominator for site in group.sites)) for group in groups]
    step = np.repeat(np.array(steps, np.float32), [group.size for group in groups])
    low, high = jnp.ceil(balance.low / step), jnp.floor(balance.high / step)
    return jnp.clip(jnp.round(x / step), low, high) * step


def _with(scales: Scales, layout: Layout, solution: Solution, kept: jax.Array) -> Scales:
    """The scales with those of a layout's groups."""
    log2, guarded = dict(scales.log2), dict(scales.kept)
    for number, start in layout.offsets.items():
        group = layout.plan.spec.groups[number]
        own = slice(start, start + group.size)
        log2[group.name] = solution.x[own].reshape(group.shape)
        guarded[group.name] = kept[own].reshape(group.shape)
    residual = jnp.maximum(scales.residual, solution.residual)
    return Scales(log2, guarded, residual, jnp.maximum(scales.sweeps, solution.sweeps))


def _renamed(found: Scales, part: Part) -> Scales:
    """The scales of a part under the names of the whole spec."""
    log2 = {part.groups[own]: values for own, values in found.log2.items()}
    kept = {part.groups[own]: values for own, values in found.kept.items()}
    return replace(found, log2=log2, kept=kept)


@partial(jax.jit, static_argnames="plan")
def _joined(solutions: Sequence[Scales], plan: Plan) -> Scales:
    """The scales of all parts, and 1 for groups of none; one call, as eager ones add up."""
    scales = _at_one(plan)
    for one in solutions:
        residual = jnp.maximum(scales.residual, one.residual)
        sweeps = jnp.maximum(scales.sweeps, one.sweeps)
        scales = Scales(scales.log2 | one.log2, scales.kept | one.kept, residual, sweeps)
    return scales


def _at_one(plan: Plan) -> Scales:
    """Scale 1 everywhere; groups without a range on both sides are kept there by a guard."""
    kept = {
        group.name: jnp.full(group.shape, number in plan.bare)
        for number, group in enumerate(plan.spec.groups)
    }
    zero = jnp.asarray(0.0, jnp.float32)
    return Scales(Scales.zeros(plan.spec).log2, kept, zero, jnp.asarray(0, jnp.int32))


def _check_finite(leaves: Mapping[str, Any], checks: Sequence[jax.Array]) -> None:
    """Names the leaves that hold NaN or infinity; silent while tracing."""
    try:
        if all(map(bool, checks)):
            return
    except jax.errors.TracerBoolConversionError:
        return
    bad = [repr(path) for path, leaf in leaves.items() if not bool(jnp.isfinite(leaf).all())]
    raise WeightError(
        "can't balance weights that are NaN or infinite",
        where=", ".join(bad),
        then="repair these leaves, or take their groups out of the spec with Spec.select",
    )
