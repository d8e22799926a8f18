"""What quantization does to each layer: its noise, its ranges, its bytes."""

from flaxcle.analysis.grids import Histogram as Histogram
from flaxcle.analysis.memory import memory_table as memory_table
from flaxcle.analysis.ranges import RangeStatistics as RangeStatistics
from flaxcle.analysis.ranges import range_statistics as range_statistics
from flaxcle.analysis.sensitivity import sensitivity as sensitivity
