"""All benchmarks, one after the other: `python -m benchmarks`."""

from __future__ import annotations

import runpy
from pathlib import Path

for script in ("equalize.py", "discover.py"):
    runpy.run_path(str(Path(__file__).with_name(script)), run_name="__main__")
