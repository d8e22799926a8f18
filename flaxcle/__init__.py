"""flaxcle turns a trained JAX network into the equivalent network that survives int8 best."""

from flaxcle.bias import correct_bias as correct_bias
from flaxcle.compare import compare as compare
from flaxcle.compare import sqnr as sqnr
from flaxcle.quantize import Calibration as Calibration
from flaxcle.quantize import QuantConfig as QuantConfig
from flaxcle.quantize import calibrate as calibrate
from flaxcle.quantize import fake_quant as fake_quant
from flaxcle.spec import Blocked as Blocked
from flaxcle.spec import Group as Group
from flaxcle.spec import Index as Index
from flaxcle.spec import Scales as Scales
from flaxcle.spec import Site as Site
from flaxcle.spec import Spec as Spec
from flaxcle.verify import Equivalence as Equivalence
from flaxcle.verify import verify as verify
