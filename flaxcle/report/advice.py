"""What to do next, derived from the numbers: the first thing is worth the most.

The invariant: every piece of advice names what it was concluded from, and a call to make.
"""

from __future__ import annotations

from collections.abc import Iterator

from flaxcle.report.answers import WORTH, best_row, noise_shares
from flaxcle.report.data import Advice, Findings
from flaxcle.tables import Table

LOPSIDED = 3.0  # dB between weights and activations, from which one of them limits
CLIPPED = 1.0  # percent

HINTS = {
    "fold": (
        "The network has BatchNorms that are not folded, so that most pairs of layers are out of "
        "reach.",
        "params = fc.fold_batch_norm(fn, params, x)",
    ),
    "clips": (
        "The network has clips, such as ReLU6, that stop scales. They let them through once each "
        "channel has a bound of its own.",
        "fn, params = fc.expose_clips(fn, params, x)",
    ),
    "undeclared": (
        "There are scales that the spec does not declare; the network below shows where.",
        "spec = fc.find_spec(fn, params, x)",
    ),
}


def advices(findings: Findings) -> Iterator[Advice]:
    """The advice, the most urgent first."""
    if not findings.unchanged:
        yield Advice(
            "The function changed. Find the operation that the spec forgot.",
            "fc.check_spec(fn, params, spec, x)",
        )
    yield from (Advice(*HINTS[hint]) for hint in HINTS if hint in findings.hints)
    found = [*_better_row(findings.headline), *_limit(findings), *_clipped(findings)]
    yield from found
    if findings.stages is None:
        yield Advice(
            "quantize_recipe tries every stage, measures each on held-back data and keeps what "
            "helps.",
            "recipe = fc.quantize_recipe(fn, params, batches, config)",
        )
    if not found:
        yield Advice("No layer stands out. Measure on your own test data before you deploy.")


def _better_row(headline: Table) -> Iterator[Advice]:
    """When another row of the first table beats `after`."""
    rows, best = list(headline), best_row(headline)
    lost = rows[1]["SQNR dB"] - rows[best]["SQNR dB"]
    if best > 1 and lost > 0:
        yield Advice(
            f"Keep the params from before: they are {lost:.1f} dB better in integers. Scales that "
            "follow the activations may do what those of weights don't.",
            "params = fc.equalize(params, spec, ranges=calibration)",
        )
    elif best > 2:
        gain = rows[best]["SQNR dB"] - rows[2]["SQNR dB"]
        yield Advice(
            f"Deploy \u201c{rows[best]['']}\u201d: its SQNR is {gain:.1f} dB above that of "
            f"\u201c{rows[2]['']}\u201d."
        )


def _limit(findings: Findings) -> Iterator[Advice]:
    totals = {
        row["kind"]: row["alone dB"] for row in findings.sensitivity if row["layer"] == "(all)"
    }
    weights, activations = (totals.get(kind, float("inf")) for kind in ("weights", "activations"))
    yield from _worst(findings)
    if weights < activations - LOPSIDED and findings.config.weight_granularity == "per_tensor":
        yield Advice(
            f"Weights limit: {weights:.1f} dB alone, activations {activations:.1f} dB. One scale "
            "for each output channel helps, where the accelerator has it.",
            'config = fc.QuantConfig(weight_granularity="per_channel")',
        )
    elif weights < activations - LOPSIDED:
        yield Advice(
            f"Weights limit: {weights:.1f} dB alone, activations {activations:.1f} dB.",
            "params = fc.round_weights(fn, params, batches, config)",
        )
    elif activations < weights - LOPSIDED:
        yield Advice(
            f"Activations limit: {activations:.1f} dB alone, weights {weights:.1f} dB. Ranges that "
            "leave outliers out, or scales that follow the activations, may help.",
            'config = fc.QuantConfig(act_observer="mse")\n'
            "params = fc.equalize(params, spec, ranges=calibration)",
        )


def _worst(findings: Findings) -> Iterator[Advice]:
    """Places that are worth more bits."""
    gains = [(row, row["gain dB"]) for row, _ in noise_shares(findings.sensitivity)]
    worth = sorted((pair for pair in gains if pair[1] > WORTH), key=lambda pair: -pair[1])[:3]
    if worth:
        named = ", ".join(f"the {r['kind']} of {r['layer']} (+{gain:.1f} dB)" for r, gain in worth)
        yield Advice(f"Give more bits to {named}: that is what leaving each in float wins.")


def _clipped(findings: Findings) -> Iterator[Advice]:
    rows = [row for row in findings.after.activations if row["clipped %"] > CLIPPED]
    if rows:
        worst = max(rows, key=lambda row: row["clipped %"])
        yield Advice(
            f"{len(rows)} activations are clipped by more than {CLIPPED:.0f} %, {worst['name']} by "
            f"{worst['clipped %']:.1f} %. Calibrate on more data, or with their extremes.",
            'config = fc.QuantConfig(act_observer="minmax")',
        )
