"""The example that equalizes a sharded checkpoint, in a small size."""

from __future__ import annotations

import jax
import numpy as np
import orbax.checkpoint as ocp

import sharded_checkpoint
from flaxcle.paths import named_leaves


def test_checkpoint_is_equalized_share_by_share(tmp_path, capsys):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        sharded_checkpoint.run(layers=2, width=32, folder=tmp_path)
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert float(said["change"].split()[2]) < 1e-4
    stored = ocp.StandardCheckpointer()
    before, after = (
        named_leaves(stored.restore(tmp_path / name)) for name in ("trained", "equalized")
    )
    assert before.keys() == after.keys()
    for path in ("blocks/up", "blocks/down", "blocks/v", "blocks/o", "blocks/norm_1"):
        assert not np.array_equal(before[path], after[path]), path
    gap = {name: channel_gap(leaves) for name, leaves in (("before", before), ("after", after))}
    assert gap["after"] < 0.1 < gap["before"]


def channel_gap(leaves: dict[str, jax.Array]) -> float:
    """How far the ranges of `up` and `down` are apart in the worst channel, as a logarithm."""
    out = np.abs(leaves["blocks/up"]).max(1)
    into = np.abs(leaves["blocks/down"]).max(2)
    return float(np.abs(np.log2(out / into)).max())
