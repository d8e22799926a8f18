"""The moves that keep the mean of every channel: absorption and correction of biases."""

from flaxcle.bias.empirical import correct_bias as correct_bias
