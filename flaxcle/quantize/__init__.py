"""Integer grids, observers, calibration, and the int8 simulation."""

from flaxcle.quantize.calibrate import Calibration as Calibration
from flaxcle.quantize.calibrate import calibrate as calibrate
from flaxcle.quantize.config import QuantConfig as QuantConfig
from flaxcle.quantize.fake import fake_quant as fake_quant
