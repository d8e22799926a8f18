"""Settings of the whole test suite: eight CPU devices, strict dtypes, no implicit rank promotion.

They must be in the environment or in the config before the first array exists, hence the order.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# Most of the time goes into compiling programs that run once: a third less with plain code, and two
# fifths less again without the newer emitters. XLA aborts when it does not know a flag.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__ < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

sys.path.insert(0, str(Path(__file__).parent))

TESTS_BETWEEN_CLEARINGS = 100
_finished = count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, so that no process is alone with one of them in the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _few_compiled_programs() -> Iterator[None]:
    """Frees compiled programs now and then: the kernel allows a process 65,530 memory maps."""
    yield
    if next(_finished) % TESTS_BETWEEN_CLEARINGS == 0:
        jax.clear_caches()
        gc.collect()
