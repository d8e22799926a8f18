"""Learned rounding: every weight up or down, so that the layer's output changes least."""

from flaxcle.rounding.weights import round_weights as round_weights
