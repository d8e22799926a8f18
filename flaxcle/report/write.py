"""`report`: from two networks to a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flaxcle.paths import PyTree
from flaxcle.quantize import QuantConfig
from flaxcle.quantize.calibrate import Batches
from flaxcle.recipe import Recipe
from flaxcle.report.gather import gather
from flaxcle.report.page import render
from flaxcle.report.subject import Function, make_subject
from flaxcle.spec import Spec
from flaxcle.tables import Table


def report(
    fn: Function,
    before: PyTree,
    after: PyTree | Recipe,
    batches: Batches,
    config: QuantConfig | None = None,
    *,
    path: str | Path = "report.html",
    after_fn: Function | None = None,
    corrected: PyTree | None = None,
    spec: Spec | None = None,
    labels: Any = None,
    headline: Table | None = None,
    probes: Batches | None = None,
    title: str = "Quantization report",
) -> Path:
    """Writes one self-contained HTML page on what equalization did to a network.

    It shows float against integers, whether the function is unchanged, the network with the scales
    that reach each layer and the reasons for those that don't, which layers still hurt, and what
    to do next. The page needs no server and asks none.

    Args:
        fn: the function `fn(params, *inputs)`.
        before: its params before equalization, with norms folded.
        after: the equalized params, or the `Recipe` that `quantize_recipe` returned for `before`.
        batches: inputs, or tuples of inputs, as for `calibrate`.
        config: the arithmetic; int8 per tensor when not given, and the recipe's own for a recipe.
        path: where to write the page.
        after_fn: the function of `after`, where `expose_clips` made a new one.
        corrected: `after` with corrected biases; made here when not given.
        spec: the spec that was used; the discovered one when not given.
        labels: the class of each row of all batches, for the accuracy.
        headline: what `compare` gave on test data, rows float, before, after, then others; made
            from `batches` when not given.
        probes: few inputs, on which layers are looked at one by one; the first batch when not
            given. A network of 50 layers runs some 200 times on them.
        title: of the page.

    Returns:
        The path.

    Raises:
        CalibrationError: no batch.
        ConfigError: labels for outputs that are not rows of logits.
        FlaxcleError: an output is not finite, or the extra `report` is not installed.

    Example:
        >>> import jax.numpy as jnp, tempfile, flaxcle as fc
        >>> fn = lambda p, x: jnp.maximum(x @ p["a"], 0) @ p["b"]
        >>> params = {"a": jnp.array([[8.0, 0.01]]), "b": jnp.array([[0.01], [8.0]])}
        >>> x = jnp.linspace(0.1, 1, 64)[:, None]
        >>> equalized = fc.equalize(params, fc.find_spec(fn, params, x))
        >>> path = tempfile.mkdtemp() + "/report.html"
        >>> fc.report(fn, params, equalized, [x], path=path).read_text()[:15]
        '<!doctype html>'
    """
    networks = (fn, before, after)
    subject = make_subject(networks, after_fn, corrected, batches, probes, config)
    page = render(gather(subject, spec, labels, headline, title))
    path = Path(path)
    path.write_text(page, encoding="utf-8")
    return path
