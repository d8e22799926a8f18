"""Finds every scale symmetry of a function, and checks a declared one."""

from flaxcle.discover.check import check_spec as check_spec
from flaxcle.discover.find import find_spec as find_spec
