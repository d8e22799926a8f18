"""Data-free bias correction: the error of the rounded weights, times the mean of their input.

    b -= (Q(W) - W) E[x]

E[x] comes from BatchNorm statistics and from the normal distribution behind them, so no data are
needed. The invariant: where E[x] is not known, nothing is corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxcle.bias.adds import BiasAdd, find_bias_adds
from flaxcle.bias.moments import propagate
from flaxcle.bias.statistics import norm_statistics
from flaxcle.jaxpr import Op, trace
from flaxcle.paths import PyTree, named_leaves, replace_leaves
from flaxcle.quantize.config import QuantConfig
from flaxcle.quantize.plan import make_plan
from flaxcle.quantize.weights import snap_weight


def correct_bias_analytic(
    fn: Callable[..., Any],
    variables: PyTree,
    config: QuantConfig,
    *inputs: Any,
    before: PyTree | None = None,
) -> PyTree:
    """Takes the mean error that rounding the weights makes out of the biases, without data.

    `b -= (Q(W) - W) E[x]` for each convolution and matrix product with a bias behind it, where
    E[x] is the mean of its input. Behind a BatchNorm a channel is Gaussian with mean beta and
    deviation |gamma|; from there its distribution is followed through activations, clips, sums,
    pools, means and further layers (as Gaussian again, channels and positions independent) to the
    next one. Floating inputs count as standard normal. Behind an op
    without a rule (attention, gates, loops) nothing is corrected until the next BatchNorm. The
    rounding of activations is left to `correct_bias`, which needs data and is the better one.

    Args:
        fn: any function `fn(variables, *inputs)` in inference mode.
        variables: what will be quantized: params and, with live BatchNorms, their statistics.
        config: the grids of the weights.
        inputs: example inputs or their ShapeDtypeStructs; their values are not used.
        before: for variables whose norms were folded: those of the same function before folding.
            Rescaled, absorbed and pruned channels are found by comparing both on noise. Call
            `expose_clips` before folding, so that both have the same structure.

    Returns:
        Variables of the same structure and dtypes; only biases differ.

    Raises:
        TraceError: no output depends on the variables, or `before` has another structure.

    Example:
        >>> import jax, jax.numpy as jnp, flaxcle as fc
        >>> fn = lambda p, x: jax.nn.relu(x) @ p["kernel"] + p["bias"]
        >>> params = {"kernel": jnp.array([[1.0], [0.4]]), "bias": jnp.zeros(1)}
        >>> config, x = fc.QuantConfig(weight_bits=2), jnp.ones((1, 2))
        >>> new = fc.correct_bias_analytic(fn, params, config, x)
        >>> round(new["bias"].item(), 3)  # 0.4 is lost, times E[relu(x)] = 0.399
        0.16

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 and appendix C.
    """
    program = trace(fn, variables, *inputs)
    plan = make_plan(program)
    adds = find_bias_adds(plan.flow)

    def snap(op: Op, operand: int, weight: Any) -> Any:
        quantizer = plan.at.get(op, {}).get(operand)
        return snap_weight(weight, config, quantizer.channel_axes) if quantizer else weight

    leaves = named_leaves(variables)
    statistics = norm_statistics(program, variables, before, inputs)
    _, errors = propagate(program, leaves, statistics, adds, snap)
    return replace_leaves(variables, _corrected(leaves, adds, errors))


def _corrected(
    leaves: Mapping[str, Any], adds: Mapping[Op, BiasAdd], errors: Mapping[Op, np.ndarray]
) -> dict[str, np.ndarray]:
    """Biases less the mean error over the places where each is added."""
    shifts: dict[str, list[np.ndarray]] = {}
    for op, error in errors.items():
        add = adds[op]
        shape = [n if k in add.axes else error.shape[k] for k, n in enumerate(op.outputs[0].shape)]
        whole = jnp.asarray(np.broadcast_to(error, shape))
        shift = np.asarray(add.per_channel(jnp.mean, whole)).astype(np.float64)
        shifts.setdefault(add.leaf, []).append(shift.reshape(jnp.shape(leaves[add.leaf])))
    return {
        path: np.asarray(leaves[path]).astype(np.float64) - np.mean(found, 0)
        for path, found in shifts.items()
    }
