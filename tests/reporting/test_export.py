"""Records as tables."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from record_factory import make_stored

from robench.errors import UsageError
from robench.reporting.export import csv_bytes, samples_frame


def test_every_sample_of_every_record_has_a_row():
    one = make_stored("SSBC", attack="a", values={"attention_deviation": [0.1, 0.2, np.nan, 0.3]})
    two = make_stored("SBEC", attack="b")
    frame = samples_frame([one, two])
    assert list(frame.columns[:7]) == ["key", "model", "dataset", "norm", "eps", "attack", "seed"]
    assert list(frame["outcome"]) == [
        *("survived", "survived", "broken", "clean_error"),
        *("survived", "broken", "errored", "clean_error"),
    ]
    assert list(frame["attack"]) == ["a"] * 4 + ["b"] * 4
    assert frame["attention_deviation"].isna().tolist() == [False, False, True, False] + [True] * 4


def test_csv_and_parquet_hold_the_same():
    frame = samples_frame([make_stored("SBCE", values={"alignment": [0.1, 1 / 3, 0.0, np.nan]})])
    csv = pd.read_csv(io.BytesIO(csv_bytes(frame)))
    parquet = pd.read_parquet(io.BytesIO(frame.to_parquet(index=False)))
    assert list(csv.columns) == list(parquet.columns) == list(frame.columns)
    # Numbers keep all their digits.
    np.testing.assert_array_equal(csv["alignment"], frame["alignment"].astype(float))
    np.testing.assert_array_equal(parquet["alignment"], frame["alignment"].astype(float))
    assert list(csv["sample_id"]) == list(parquet["sample_id"])


def test_nothing_to_export_is_an_error():
    with pytest.raises(UsageError, match="no records"):
        samples_frame([])
