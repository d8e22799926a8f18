"""The moves that keep the mean of every channel: absorption and correction of biases."""

from flaxcle.bias.absorb import absorb_bias as absorb_bias
from flaxcle.bias.absorb import absorbable as absorbable
from flaxcle.bias.analytic import correct_bias_analytic as correct_bias_analytic
from flaxcle.bias.empirical import correct_bias as correct_bias
