"""Tables as data, as text, as CSV and as a data frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flaxcle.errors import ConfigError
from flaxcle.tables import Table

TABLE = Table(
    ("layer", "min", "max"),
    (("Conv_0", -1.0, 123456.789), ("a, b", None, 1 / 3), ('say "x"', 2, float("inf"))),
)


def test_rows_columns_and_length() -> None:
    assert len(TABLE) == 3
    assert list(TABLE)[1] == {"layer": "a, b", "min": None, "max": 1 / 3}
    assert TABLE.column("min") == [-1.0, None, 2]


def test_text_is_aligned_and_short() -> None:
    assert str(TABLE).splitlines() == [
        "layer    min         max",
        "Conv_0    -1  1.2346e+05",
        "a, b       -     0.33333",
        'say "x"    2         inf',
    ]


def test_no_rows() -> None:
    empty = Table(("layer", "max"), ())
    assert str(empty) == "layer  max"
    assert empty.to_csv() == "layer,max\n"
    assert len(empty) == 0


def test_csv_quotes_and_round_trips_numbers(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    text = TABLE.to_csv(path)
    assert path.read_text(encoding="utf-8") == text
    assert text.splitlines()[2:] == ['"a, b",,0.3333333333333333', '"say ""x""",2,inf']
    assert pd.read_csv(path)["max"].tolist() == TABLE.column("max")


def test_pandas() -> None:
    frame = TABLE.to_pandas()
    assert list(frame.columns) == list(TABLE.columns)
    assert frame["layer"].tolist() == TABLE.column("layer")
    np.testing.assert_array_equal(frame["min"].to_numpy(float), [-1.0, np.nan, 2.0])


def test_an_unknown_column_is_an_error_that_lists_the_columns() -> None:
    with pytest.raises(ConfigError) as error:
        TABLE.column("mean")
    assert str(error.value) == (
        "the table has no column 'mean'. What to do: use one of ('layer', 'min', 'max')."
    )
