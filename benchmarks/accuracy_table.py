"""Prints the results of `accuracy.py` as Markdown tables: `python benchmarks/accuracy_table.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from accuracy import BITS, DATA
from accuracy_stages import DATA as STAGES

ORDER = ("plain", "stressed", "data-free", "stages")


def cell(row: dict[str, Any]) -> tuple[str, str]:
    """What the float network reaches on the same inputs, and the quantized one's loss."""
    if "ratio" in row:
        return f"{row['float']:.3f}", f"{row['perplexity']:.3f} (x {row['ratio']:.3f})"
    if "accuracy" not in row:
        return "", ""
    lost = f"{row['loss']:+.2f} ± {row['standard_error']:.2f}"
    return f"{row['float']:.2f}", f"{row['accuracy']:.2f} ({lost})"


def lines(entries: list[dict[str, Any]]) -> Iterator[str]:
    """The table of one network."""
    yield "| setting | network | inputs | float | quantized (loss) | agreement % | SQNR dB |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for entry in entries:
        run = "" if entry["run"] in ("plain", "stages") else f", {entry['run']}"
        for name, row in entry["results"].items():
            reached, own = cell(row)
            shown = f"**{name}**" if name == "recipe" else name
            numbers = f"{row['agreement']:.1f} | {row['sqnr_db']:.1f}"
            setting = f"{entry['bits']} per {entry['per']}{run}"
            yield f"| {setting} | {shown} | {row['images']} | {reached} | {own} | {numbers} |"


def stages(entry: dict[str, Any]) -> Iterator[str]:
    """The recipe's own table."""
    yield "| stage | kept | SQNR dB | with corrected biases |"
    yield "|---|---|---:|---:|"
    for row in entry["results"]["recipe"]["stages"]:
        kept = "yes" if row["kept"] else ""
        yield f"| {row['stage']} | {kept} | {row['SQNR dB']:.1f} | {row['corrected dB']:.1f} |"


def rank(entry: dict[str, Any]) -> tuple[Any, ...]:
    bits = list(BITS).index(entry["bits"])
    return (entry["network"], ORDER.index(entry["run"]), entry["per"] != "tensor", bits)


def main() -> None:
    files = [json.loads(path.read_text()) for path in (DATA, STAGES) if path.exists()]
    entries = sorted((entry for file in files for entry in file), key=rank)
    for network, group in groupby(entries, key=lambda entry: entry["network"]):
        every = list(group)
        own = [entry for entry in every if entry["run"] != "stages"]
        print(f"### {network}\n", *lines(own), sep="\n")
        left_out = [entry for entry in every if entry["run"] == "stages"]
        if left_out:
            print(
                "\nWith one stage left out, on the first test inputs:\n", *lines(left_out), sep="\n"
            )
        for entry in own:
            if entry["run"] == "plain":
                print(f"\nStages at {entry['bits']} per {entry['per']}, on calibration data:\n")
                print(*stages(entry), sep="\n")
        print()


if __name__ == "__main__":
    main()
