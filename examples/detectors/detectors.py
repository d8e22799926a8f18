"""Two trained face detectors in Flax Linen: Tiny YOLOv2 and SSD on MobileNetV1.

They are what a layer pattern does not expect: one tensor with two consumers, many outputs, live
BatchNorm, clips, leaky ReLU spelled out as relu(x - 0.1 x) + 0.1 x. Weights: face-api (MIT, LICENSE
beside this file), one byte an element, value = byte * scale + min. Sources: Redmon and Farhadi
2016; Liu et al. 2015; Howard et al. 2017.

Invariant: boxes are (top, left, bottom, right) in units of the picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

HERE = Path(__file__).parent
TINY_ANCHORS = (
    (1.603231, 2.094468),
    (6.041143, 7.080126),
    (2.882459, 3.518061),
    (4.266906, 5.178857),
    (9.041765, 10.66308),
)
TINY_MEAN = (117.001, 114.697, 97.404)
SSD_WIDTHS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
SSD_STRIDED = (2, 4, 6, 12)
SSD_EXTRAS = ((256, 1), (512, 3), (128, 1), (256, 3), (128, 1), (256, 3), (64, 1), (128, 3))
SSD_EPSILON = 0.0010000000474974513
LEAVES = {
    "filters": "kernel",
    "weights": "kernel",
    "depthwise_weights": "kernel",
    "bias": "bias",
    "biases": "bias",
    "convolution_bn_offset": "bias",
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
}


@dataclass(frozen=True)
class Detector:
    """``fn(variables, prepare(picture))`` gives what ``decode`` turns into boxes and scores."""

    fn: Callable[[Any, jax.Array], Any]
    variables: Any
    prepare: Callable[[np.ndarray], jax.Array]
    decode: Callable[[Any], tuple[np.ndarray, np.ndarray]]


class TinyYolo(nn.Module):
    """Five separable convolutions after a full one; five anchors of (x, y, w, h, objectness)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = leaky(nn.Conv(16, (3, 3), padding="VALID", name="conv0")(x))
        for i in range(1, 6):
            x = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
            width = x.shape[-1]
            depthwise = nn.Conv(
                width,
                (3, 3),
                feature_group_count=width,
                use_bias=False,
                name=f"conv{i}_depthwise",
            )
            x = leaky(nn.Conv(2 * width, (1, 1), name=f"conv{i}_pointwise")(depthwise(x)))
        x = nn.max_pool(x, (2, 2), (1, 1), padding="SAME")
        return nn.Conv(25, (1, 1), name="conv8")(x)


class SSDMobileNetV1(nn.Module):
    """Thirteen separable blocks, eight extra convolutions, six box and class heads."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = relu6(nn.Conv(32, (3, 3), strides=2, name="Conv2d_0_pointwise")(x))
        for i, width in enumerate(SSD_WIDTHS[:11], 1):
            x = self.block(x, i, width)
        features = [x]
        for i, width in enumerate(SSD_WIDTHS[11:], 12):
            x = self.block(x, i, width)
        features.append(x)
        for i, (width, kernel) in enumerate(SSD_EXTRAS):
            name = f"Prediction_Conv2d_{i}_pointwise"
            x = relu6(nn.Conv(width, (kernel, kernel), strides=1 + i % 2, name=name)(x))
            features += [x] if i % 2 else []
        heads = [self.head(x, i) for i, x in enumerate(features)]
        boxes, classes = zip(*heads, strict=True)
        return jnp.concatenate(boxes, axis=1), jnp.concatenate(classes, axis=1)

    def block(self, x: jax.Array, i: int, width: int) -> jax.Array:
        name, inputs = f"Conv2d_{i}_depthwise", x.shape[-1]
        stride = 2 if i in SSD_STRIDED else 1
        x = nn.Conv(inputs, (3, 3), stride, feature_group_count=inputs, use_bias=False, name=name)(
            x
        )
        norm = nn.BatchNorm(True, epsilon=SSD_EPSILON, name=f"{name}_BatchNorm")
        x = relu6(norm(x))
        return relu6(nn.Conv(width, (1, 1), name=f"Conv2d_{i}_pointwise")(x))

    def head(self, x: jax.Array, i: int) -> tuple[jax.Array, jax.Array]:
        name, anchors = f"Prediction_BoxPredictor_{i}", 6 if i else 3
        boxes = nn.Conv(4 * anchors, (1, 1), name=f"{name}_BoxEncodingPredictor")(x)
        classes = nn.Conv(3 * anchors, (1, 1), name=f"{name}_ClassPredictor")(x)
        return boxes.reshape((x.shape[0], -1, 4)), classes.reshape((x.shape[0], -1, 3))


def leaky(x: jax.Array) -> jax.Array:
    return nn.relu(x - 0.1 * x) + 0.1 * x


def relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0.0, 6.0)


def read_weights(stem: str) -> dict[str, np.ndarray]:
    """The tensors of ``<stem>.bin`` by name, in float32, as its manifest lists them."""
    manifest = json.loads((HERE / f"{stem}-weights_manifest.json").read_text())
    data, start, tensors = (HERE / f"{stem}.bin").read_bytes(), 0, {}
    for entry in (entry for part in manifest for entry in part["weights"]):
        grid, count = entry.get("quantization"), int(np.prod(entry["shape"]))
        value = np.frombuffer(data, np.uint8 if grid else entry["dtype"], count, start)
        start += value.nbytes
        if grid:
            value = value.astype(np.float64) * grid["scale"] + grid["min"]
        tensors[entry["name"]] = value.astype(np.float32).reshape(entry["shape"])
    return tensors


def to_variables(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tensors as a Flax variables dict: parents of a tensor joined are its module's name."""
    variables: dict[str, Any] = {"params": {}}
    for name, value in tensors.items():
        *parents, leaf = name.removeprefix("MobilenetV1/").split("/")
        if leaf not in LEAVES:
            continue
        if "depthwise" in parents[-1] and leaf in ("filters", "depthwise_weights"):
            value = np.swapaxes(value, 2, 3)
        collection = "batch_stats" if leaf.startswith("moving_") else "params"
        module = variables.setdefault(collection, {}).setdefault("_".join(parents), {})
        module[LEAVES[leaf]] = jnp.asarray(value)
    return variables


def separable_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tiny YOLO's tensors, depthwise and pointwise halves of a convolution named apart."""
    separable = {name.split("/")[0] for name in tensors if name.endswith("depthwise_filter")}
    renamed = {}
    for name, value in tensors.items():
        block, leaf = name.split("/")
        if block in separable:
            part = "depthwise" if leaf == "depthwise_filter" else "pointwise"
            name = f"{block}_{part}/{'bias' if leaf == 'bias' else 'filters'}"
        renamed[name] = value
    return renamed


def tiny_face(size: int = 416) -> Detector:
    """The Tiny YOLOv2 face detector (190 KB); any size that 32 divides."""
    variables = to_variables(separable_names(read_weights("tiny_face_detector_model")))

    def prepare(picture: np.ndarray) -> jax.Array:
        return (resized(picture, size) - jnp.asarray(TINY_MEAN).reshape((1, 1, 1, 3))) / 255.0

    return Detector(TinyYolo().apply, variables, prepare, decode_tiny)


def ssd_mobilenetv1() -> Detector:
    """The SSD face detector (5.6 MB); its priors are those of a 512 x 512 input."""
    tensors = read_weights("ssd_mobilenetv1_model")
    priors = tensors["Output/extra_dim"][0]

    def prepare(picture: np.ndarray) -> jax.Array:
        return resized(picture, 512) / 127.5 - 1.0

    def decode(outputs: tuple[jax.Array, jax.Array]) -> tuple[np.ndarray, np.ndarray]:
        return decode_ssd(outputs, priors)

    return Detector(SSDMobileNetV1().apply, to_variables(tensors), prepare, decode)


def resized(picture: np.ndarray, size: int) -> jax.Array:
    """A square RGB picture of bytes as (1, size, size, 3) in float32."""
    values = jnp.asarray(picture, jnp.float32)
    return jax.image.resize(values, (size, size, 3), "linear")[None]


def decode_tiny(output: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of every cell and anchor of the first picture."""
    grid = np.asarray(output[0]).reshape((*output.shape[1:3], 5, 5))
    rows, columns = grid.shape[:2]
    row, column = np.indices((rows, columns))[..., None]
    anchors, cells = np.asarray(TINY_ANCHORS), np.array([columns, rows])
    x = (column + sigmoid(grid[..., 0])) / columns
    y = (row + sigmoid(grid[..., 1])) / rows
    width, height = np.moveaxis(np.exp(grid[..., 2:4]) * anchors / cells, -1, 0)
    return corners(y, x, height, width).reshape(-1, 4), sigmoid(grid[..., 4]).ravel()


def decode_ssd(
    outputs: tuple[jax.Array, jax.Array], priors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes relative to the priors (variances 10 and 5) and the scores of the face class."""
    codes, logits = (np.asarray(output[0]) for output in outputs)
    size = priors[:, 2:] - priors[:, :2]
    centre = (priors[:, :2] + priors[:, 2:]) / 2 + codes[:, :2] / 10 * size
    size = size * np.exp(codes[:, 2:] / 5)
    return corners(*centre.T, *size.T), sigmoid(logits[:, 1])


def corners(y: np.ndarray, x: np.ndarray, height: np.ndarray, width: np.ndarray) -> np.ndarray:
    return np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], axis=-1)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def suppress(
    boxes: np.ndarray, scores: np.ndarray, threshold: float = 0.5, overlap: float = 0.4
) -> list[tuple[np.ndarray, float]]:
    """Non-maximum suppression: drops a box that overlaps a better one by more than ``overlap``."""
    kept: list[tuple[np.ndarray, float]] = []
    for i in np.argsort(-scores):
        if scores[i] < threshold:
            break
        if all(intersection_over_union(boxes[i], box) <= overlap for box, _ in kept):
            kept.append((boxes[i], float(scores[i])))
    return kept


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    return shared / float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared)


def detect(
    detector: Detector, picture: np.ndarray, **options: Any
) -> list[tuple[np.ndarray, float]]:
    """The faces of a square picture, best first."""
    outputs = jax.jit(detector.fn)(detector.variables, detector.prepare(picture))
    return suppress(*detector.decode(outputs), **options)
