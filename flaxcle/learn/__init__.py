"""Choices that only the output can judge: searched on calibration data."""

from flaxcle.learn.balance import balance_scales as balance_scales
from flaxcle.learn.ranges import learn_ranges as learn_ranges
from flaxcle.learn.search import learn_scales as learn_scales
