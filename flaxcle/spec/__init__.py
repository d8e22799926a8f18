"""The central table: `Site`, `Group`, `Spec` and `Scales`."""

from flaxcle.spec.check import check_fit as check_fit
from flaxcle.spec.index import Index as Index
from flaxcle.spec.index import Run as Run
from flaxcle.spec.scales import Scales as Scales
from flaxcle.spec.table import Blocked as Blocked
from flaxcle.spec.table import Group as Group
from flaxcle.spec.table import Site as Site
from flaxcle.spec.table import Spec as Spec
