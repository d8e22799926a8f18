"""What changed, as matplotlib axes for papers and notebooks; needs `pip install 'flaxcle[plot]'`.

Every function draws one axes, a new one when none is given, and returns it. Titles are the
caller's.
"""

from flaxcle.plot.bars import accuracy as accuracy
from flaxcle.plot.bars import sensitivity as sensitivity
from flaxcle.plot.boxes import channel_ranges as channel_ranges
from flaxcle.plot.boxes import channels as channels
from flaxcle.plot.boxes import scales as scales
from flaxcle.plot.histograms import histogram as histogram
from flaxcle.plot.steps import stages as stages
