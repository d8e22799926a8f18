"""Choices that only the output can judge: searched on calibration data."""

from flaxcle.learn.balance import balance_scales as balance_scales
