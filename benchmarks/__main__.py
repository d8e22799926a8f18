"""All benchmarks, one after the other: `python -m benchmarks`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

for script in ("speed.py", "simulation.py", "discover.py"):
    runpy.run_path(str(Path(__file__).with_name(script)), run_name="__main__")
