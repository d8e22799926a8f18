"""Integer grids, observers, calibration, the int8 simulation, and moving ranges for training."""

from flaxcle.quantize.calibrate import Calibration as Calibration
from flaxcle.quantize.calibrate import calibrate as calibrate
from flaxcle.quantize.config import QuantConfig as QuantConfig
from flaxcle.quantize.fake import fake_quant as fake_quant
from flaxcle.quantize.track import track_ranges as track_ranges
