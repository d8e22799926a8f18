"""flaxcle turns a trained JAX network into the equivalent network that survives int8 best."""

from flaxcle.apply import apply_scales as apply_scales
from flaxcle.apply import equalize as equalize
from flaxcle.bias import correct_bias as correct_bias
from flaxcle.clips import expose_clips as expose_clips
from flaxcle.compare import compare as compare
from flaxcle.compare import sqnr as sqnr
from flaxcle.discover import check_spec as check_spec
from flaxcle.discover import find_spec as find_spec
from flaxcle.fold import fold_batch_norm as fold_batch_norm
from flaxcle.learn import balance_scales as balance_scales
from flaxcle.prune import prune_dead_channels as prune_dead_channels
from flaxcle.quantize import Calibration as Calibration
from flaxcle.quantize import QuantConfig as QuantConfig
from flaxcle.quantize import calibrate as calibrate
from flaxcle.quantize import fake_quant as fake_quant
from flaxcle.rounding import round_weights as round_weights
from flaxcle.solve import solve as solve
from flaxcle.spec import Blocked as Blocked
from flaxcle.spec import Group as Group
from flaxcle.spec import Index as Index
from flaxcle.spec import Scales as Scales
from flaxcle.spec import Site as Site
from flaxcle.spec import Spec as Spec
from flaxcle.verify import Equivalence as Equivalence
from flaxcle.verify import verify as verify
