"""Means and variances of every channel, propagated through the function without data."""

from flaxcle.bias.moments.interpret import propagate as propagate
from flaxcle.bias.moments.known import Known as Known
from flaxcle.bias.moments.known import gaussian as gaussian
