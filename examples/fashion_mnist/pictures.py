"""Two pictures of what equalization does to the weights; kernels are (..., in, out) arrays by name.

A symmetric int8 grid of a whole kernel has the step max|W| / 127. Both pictures show channels in
this unit: a channel whose largest weight is under one step vanishes when the kernel is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

import flaxcle as fc

STEPS = 127  # on each side of zero
BEFORE, AFTER = "#c44e52", "#2a7f9e"
INK, FAINT = "#22292f", "#d8dde2"
OCTAVES = 12  # histogram bins, each a factor of two
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "savefig.dpi": 160,
}

Kernels = Mapping[str, np.ndarray]


def save_pictures(folder: Path, before: Kernels, after: Kernels, layer: str) -> list[Path]:
    """Writes the channel ranges of `layer` and the histogram over all layers as PNG."""
    with matplotlib.rc_context(STYLE):
        figures = {
            "channel_ranges.png": channel_ranges(layer, before[layer], after[layer]),
            "layer_ranges.png": layer_ranges(before, after),
        }
        for name, figure in figures.items():
            figure.savefig(folder / name)
    return [folder / name for name in figures]


def channel_ranges(layer: str, before: np.ndarray, after: np.ndarray) -> Figure:
    """Box plots of a kernel's weights per output channel, and each channel's largest weight."""
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    figure.suptitle(
        f"{layer}: weights of each channel on the int8 grid of the layer", x=0.01, ha="left"
    )
    boxes, peaks = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 2))
    for column, (title, kernel, color) in enumerate(
        (("before", before, BEFORE), ("after equalization", after, AFTER))
    ):
        weights = in_steps(kernel)
        _draw_boxes(boxes[column], weights, color)
        _draw_peaks(peaks[column], weights, color)
        boxes[column].set_title(title, color=color, fontweight="bold")
    boxes[0].set_ylabel("weight, int8 steps")
    peaks[0].set_ylabel("largest |weight|, int8 steps")
    return figure


def layer_ranges(before: Kernels, after: Kernels) -> Figure:
    """For each layer the share of its channels by largest weight, in octaves under the layer's."""
    figure = Figure(figsize=(11, 0.16 * len(before) + 1.4), layout="constrained")
    figure.suptitle(
        "How far the channels of each layer stay under its largest weight", x=0.01, ha="left"
    )
    panels = figure.subplots(1, 2, sharey=True)
    colors = LinearSegmentedColormap.from_list(
        "shares", ["#ffffff", "#9fc3d4", "#1f5f7a", "#0b2c3d"]
    )
    _draw_octaves(panels[0], before, colors, "before", BEFORE)
    image = _draw_octaves(panels[1], after, colors, "after equalization", AFTER)
    figure.colorbar(image, ax=panels, label="share of the layer's channels", pad=0.01, aspect=40)
    return figure


def in_steps(kernel: np.ndarray) -> np.ndarray:
    """The weights in units of the kernel's int8 step, shape (weights of a channel, channels)."""
    weights = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
    return weights * (STEPS / np.abs(weights).max())


def octave_shares(kernel: np.ndarray) -> np.ndarray:
    """Share of channels whose largest weight is 2**-k of the layer's, k rounded down, by k.

    The last bin holds all that are smaller; channels of zeros are left out.
    """
    peaks = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(axis=0)
    peaks = peaks / peaks.max()
    octaves = np.minimum(np.floor(-np.log2(peaks[peaks > 0])), OCTAVES - 1).astype(int)
    return np.bincount(octaves, minlength=OCTAVES) / octaves.size


def _draw_boxes(panel: Axes, weights: np.ndarray, color: str) -> None:
    five = np.quantile(weights, (0, 0.25, 0.5, 0.75, 1), axis=0).T
    fc.plot.channels(five, color=color, ax=panel)
    panel.set(xlabel="", ylabel="", ylim=(-STEPS * 1.06, STEPS * 1.06))
    panel.set_yticks((-127, -64, 0, 64, 127))


def _draw_peaks(panel: Axes, weights: np.ndarray, color: str) -> None:
    peaks = np.abs(weights).max(axis=0)
    floor = 2.0**-3
    panel.axhspan(floor, 1, color=FAINT, alpha=0.5, linewidth=0)
    panel.bar(
        range(peaks.size), np.maximum(peaks, floor) - floor, bottom=floor, color=color, width=0.7
    )
    panel.axhline(1, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    panel.set_yscale("log", base=2)
    panel.set_ylim(floor, STEPS * 1.5)
    panel.set_yticks((0.5, 2, 8, 32, 127), labels=("½", "2", "8", "32", "127"))
    panel.minorticks_off()
    panel.set_xlabel("output channel")
    lost, median = int((peaks < 1).sum()), np.median(peaks)
    panel.set_title(
        f"median {median:.0f} of {STEPS} steps; {lost} channels under one step", fontsize=9
    )


def _draw_octaves(
    panel: Axes, kernels: Kernels, colors: Colormap, title: str, title_color: str
) -> AxesImage:
    shares = np.stack([octave_shares(kernel) for kernel in kernels.values()])
    image = panel.imshow(shares, cmap=colors, vmin=0, vmax=1, aspect="auto", interpolation="none")
    ticks, step = range(0, OCTAVES, 2), np.log2(STEPS) - 0.5
    panel.set_xticks([k - 0.5 for k in ticks], [f"2$^{{{-k}}}$" if k else "1" for k in ticks])
    panel.set_xlabel("largest weight of the channel / of the layer")
    panel.set_yticks(range(len(kernels)), list(kernels), fontsize=6.5)
    panel.tick_params(axis="y", length=0)
    panel.axvline(step, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    panel.text(step + 0.1, -0.8, "one int8 step", fontsize=8)
    panel.set_title(title, color=title_color, fontweight="bold")
    panel.spines[:].set_color(FAINT)
    return image
