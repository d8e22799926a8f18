"""flaxcle turns a trained JAX network into the equivalent network that survives int8 best."""

from flaxcle.spec import Blocked as Blocked
from flaxcle.spec import Group as Group
from flaxcle.spec import Index as Index
from flaxcle.spec import Scales as Scales
from flaxcle.spec import Site as Site
from flaxcle.spec import Spec as Spec
