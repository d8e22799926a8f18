"""The questions that a reader comes with, answered from the numbers.

The invariant: an answer only repeats what a table of the same page says.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxcle.report.data import Answer, Findings, Verdict
from flaxcle.tables import Table

AGREEMENT, SQNR, ACCURACY = "agreement %", "SQNR dB", "accuracy %"
CLOSE, NEAR = 98.0, 90.0  # percent of inputs on which int8 decides as float does
FINE, USABLE = 30.0, 15.0  # dB, where outputs are no decisions
SHOWN = 3
WORTH = 1.0  # dB: what is gained by less is within what calibration data change


def answers(findings: Findings) -> Iterator[Answer]:
    """The answers, in the order in which they are asked."""
    yield _works(findings)
    yield _unchanged(findings)
    yield _hurts(findings)
    yield _blocked(findings)


def best_row(headline: Table) -> int:
    """The first row behind `before` that is as near to float as any, but for a decibel."""
    scores = headline.column(SQNR)[2:]
    return 2 + int(np.argmax([score >= max(scores) - WORTH for score in scores])) if scores else 1


def noise_shares(sensitivity: Table) -> list[tuple[dict[str, Any], float]]:
    """Each place with its share of the noise that all places make alone, the largest first."""
    rows = [row for row in sensitivity if row["layer"] != "(all)"]
    power = np.array([10 ** (-row["alone dB"] / 10) for row in rows])
    total = power.sum()
    shares = 100 * power / total if total else power
    return sorted(zip(rows, shares.tolist(), strict=True), key=lambda pair: -pair[1])


def place_name(row: dict[str, Any]) -> str:
    """A place in words: 'weights of Conv_3'."""
    return f"{row['kind']} of {row['layer']}"


def _works(findings: Findings) -> Answer:
    table, best = findings.headline, best_row(findings.headline)
    before, now = (table.column(SQNR)[k] for k in (1, best))
    text = f"Quantized outputs have an SQNR of {decibels(now)}; before, {decibels(before)}."
    verdict = _graded(now, FINE, USABLE)
    if AGREEMENT in table.columns:
        old, new = (table.column(AGREEMENT)[k] for k in (1, best))
        verdict = _graded(new, CLOSE, NEAR)
        text += f" They decide as float on {new:.4g} % of the inputs; before, on {old:.4g} %."
    if ACCURACY in table.columns:
        exact, old, new = (table.column(ACCURACY)[k] for k in (0, 1, best))
        text += f" Accuracy: {exact:.4g} % in float, {old:.4g} % before, {new:.4g} % now."
    word = {"good": "Yes.", "fair": "Mostly.", "bad": "Not yet."}[verdict]
    if now <= before:
        verdict, word = "bad", "No, it gained nothing."
    return Answer("Did it work?", verdict, f"{word} {text}", "headline")


def _graded(value: float, good: float, fair: float) -> Verdict:
    return "good" if value >= good else "fair" if value >= fair else "bad"


def decibels(value: float) -> str:
    """An SQNR in words."""
    return "\u221e dB" if value == float("inf") else f"{value:.3g} dB"


def _unchanged(findings: Findings) -> Answer:
    found = findings.unchanged
    if found.identical:
        verdict, text = "good", "Yes, bit for bit: in float, all outputs are equal."
    elif found:
        text = (
            f"Yes. In float, outputs differ by {found.max_relative:.1e} of the largest at most; "
            f"rounding alone explains up to {found.tolerance:.1e}."
        )
        verdict = "good"
    else:
        text = (
            f"No. In float, outputs differ by {found.max_relative:.1e} of the largest; rounding "
            f"explains {found.tolerance:.1e} only. Check the spec with check_spec."
        )
        verdict = "bad"
    return Answer("Is my function unchanged?", verdict, text, "headline")


def _hurts(findings: Findings) -> Answer:
    shares = noise_shares(findings.sensitivity)
    worst = [(row, share) for row, share in shares[:SHOWN] if share > 0]
    if not worst:
        text = "None: no place makes noise at the output."
        return Answer("Which layers still hurt?", "good", text, "sensitivity")
    named = ", ".join(f"{place_name(row)} ({share:.0f} %)" for row, share in worst)
    total = sum(share for _, share in worst)
    even = total < 2 * 100 * len(worst) / len(shares)
    lead = "None stands out; most noise comes from" if even else "Most noise comes from"
    text = f"{lead} {named}: {total:.0f} % of what all {len(shares)} places make."
    return Answer("Which layers still hurt?", "good" if even else "fair", text, "sensitivity")


def _blocked(findings: Findings) -> Answer:
    layers = [node for node in findings.nodes if node.leaf]
    sides = [(node.layer, side) for node in layers for side in (node.reads, node.makes) if side]
    blocked = {layer: side.reason for layer, side in sides if side.state == "blocked"}
    held = sum(side.state == "held" for _, side in sides)
    moved = sum(side.state == "scaled" for _, side in sides)
    text = f"Scales pass {moved} of {len(sides)} inputs and outputs of {len(layers)} layers."
    if blocked:
        named = "; ".join(f"{layer}: {reason}" for layer, reason in list(blocked.items())[:SHOWN])
        rest = len(blocked) - SHOWN
        text += f" Blocked are {named}" + (f"; and {rest} more layers." if rest > 0 else ".")
    if held:
        text += f" {held} are held back, as balancing residual sums was measured to do harm."
    verdict = "good" if len(blocked) <= len(sides) / 4 else "fair"
    return Answer("What was blocked, and why?", verdict, text, "network")
