"""EfficientNet-Lite0 through qwix: what folding and equalizing in front of it change.

    python examples/qwix_int8.py [--size 96] [--crops 32]

qwix runs the module itself in int8 and knows nothing of flaxcle, which hands it other params for
the same module. ReLU6 lets no scale through, so the module gets a clip with a bound for each
channel in its place, 6 at the start: the same function. The photos are those that come with
scikit-image and scikit-learn; the reference is the float network.

    PTQ   int8 arithmetic: weights with a scale for each channel, activations as each image needs
    ODML  the simulation of LiteRT: activations with fixed ranges, weights either way
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import qwix
from flax.traverse_util import flatten_dict, unflatten_dict

import flaxcle as fc
from flaxcle.tables import Table

sys.path.insert(0, str(Path(__file__).parent / "fashion_mnist"))
sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from imagenet import imagenet_variables
from lite0 import Lite0

# By default ODML's ranges are the mean of those of single images, which clips what lies beyond.
ODML_RULE = qwix.QuantizationRule(weight_qtype="int8", act_qtype="int8", act_batch_axes=())
PTQ_RULE = qwix.QuantizationRule(weight_qtype="int8", act_qtype="int8")
Outputs = Callable[[Any], np.ndarray]


class Bound(nn.Module):
    """ReLU6 with a bound for each channel: what `expose_clips` does, written into the model."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        bound = self.param("bound", nn.initializers.constant(6.0), x.shape[-1:])
        return jnp.clip(x, 0, jnp.broadcast_to(bound, x.shape))


def bounded(x: jax.Array) -> jax.Array:
    return Bound()(x)


def with_bounds(module: nn.Module, variables: Any, x: jax.Array) -> Any:
    """The variables of the module with ReLU6 as those of the module with bounds."""
    shapes = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), x))
    known = flatten_dict(variables)
    return unflatten_dict(
        {path: known.get(path, jnp.full(leaf.shape, 6.0)) for path, leaf in shapes.items()}
    )


def variants(module: nn.Module, variables: Any, x: jax.Array) -> dict[str, Any]:
    """Params of the same function: as trained, BatchNorm folded, then equalized as well."""
    folded = fc.fold_batch_norm(module.apply, variables, x)
    pruned = fc.prune_dead_channels(module.apply, folded, x)
    spec = fc.find_spec(module.apply, pruned, x)
    equalized = fc.equalize(pruned, spec)
    return {"as trained": variables, "folded": folded, "folded and equalized": equalized}


def ptq(module: nn.Module, test: list[jax.Array]) -> Outputs:
    """int8 weights and int8 arithmetic; nothing to calibrate."""
    quantized = qwix.quantize_model(module, qwix.PtqProvider([PTQ_RULE]))
    like = jax.eval_shape(quantized.init, jax.random.key(0), test[0])["params"]
    run = jax.jit(quantized.apply)

    def outputs(variables: Any) -> np.ndarray:
        params = qwix.quantize_params(variables["params"], like)
        return np.concatenate([run({**variables, "params": params}, x) for x in test])

    return outputs


def odml(
    module: nn.Module, calibration: list[jax.Array], test: list[jax.Array], per_channel: bool
) -> Outputs:
    """LiteRT's arithmetic in float: ranges from the calibration batches, then fixed."""
    provider = qwix.OdmlQatProvider([ODML_RULE], disable_per_channel_weights=not per_channel)
    quantized = qwix.quantize_model(module, provider)
    watch = jax.jit(lambda v, x: quantized.apply(v, x, mutable=["quant_stats"])[1])
    run = jax.jit(quantized.apply)

    def outputs(variables: Any) -> np.ndarray:
        for x in calibration:
            variables = {**variables, **watch(variables, x)}
        return np.concatenate([run(variables, x) for x in test])

    return outputs


def measure(networks: dict[str, Any], ways: dict[str, Outputs], clean: np.ndarray) -> Table:
    """One row for each way and each set of params."""
    rows = []
    for way, outputs in ways.items():
        for name, variables in networks.items():
            noisy = outputs(variables)
            agreement = 100 * float(np.mean(noisy.argmax(-1) == clean.argmax(-1)))
            rows.append((way, name, round(fc.sqnr(clean, noisy), 2), round(agreement, 1)))
            print(*rows[-1], sep=", ", flush=True)
    return Table(("qwix", "params", "SQNR dB", "agreement %"), tuple(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=96, help="of the crops, in pixels")
    parser.add_argument("--crops", type=int, default=32, help="to measure on, a multiple of 32")
    chosen = parser.parse_args()
    began = time.monotonic()
    photos = import_module("accuracy_nets.lite0_photos")
    calibration = photos.crops(photos.BATCH, photos.CALIBRATION_SEED, chosen.size)
    test = photos.crops(chosen.crops, photos.TEST_SEED, chosen.size)
    module, variables = Lite0(activation=bounded), jax.tree.map(jnp.asarray, imagenet_variables())
    variables = with_bounds(module, variables, test[0])
    run = jax.jit(module.apply)
    clean = np.concatenate([run(variables, x) for x in test])
    ways = {
        "PTQ, weights per channel": ptq(module, test),
        "ODML, weights per channel": odml(module, calibration, test, True),
        "ODML, weights per tensor": odml(module, calibration, test, False),
    }
    print(measure(variants(module, variables, test[0]), ways, clean))
    print(f"{len(clean)} crops of {chosen.size} pixels, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
