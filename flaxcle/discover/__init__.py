"""Finds every scale symmetry of a function: `find_spec`."""

from flaxcle.discover.find import find_spec as find_spec
