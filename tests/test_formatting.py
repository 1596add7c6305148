from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from robench.formatting import is_undefined, number, p_value, plain


@pytest.mark.parametrize("value", [None, math.nan, pd.NA, np.float64("nan"), np.float32("nan")])
def test_undefined_is_a_dash_and_null(value: object) -> None:
    assert is_undefined(value)
    assert number(value) == "–"
    assert plain({"a": [value]}) == {"a": [None]}


@pytest.mark.parametrize("value", [0, 0.0, "", False, np.int64(3), "nan"])
def test_defined_stays(value: object) -> None:
    assert not is_undefined(value)
    assert plain(value) == value
    json.dumps(plain(value), allow_nan=False)


def test_digits() -> None:
    assert number(12.345, 2) == "12.35"
    assert number(np.float32(0.5)) == "0.5"
    assert number(7, 2) == "7"
    assert plain((math.inf, 1)) == [None, 1]


def test_a_p_value_is_never_rounded_to_zero() -> None:
    assert p_value(0.0004) == "< 0.001"
    assert p_value(0.0314) == "0.031"
    assert p_value(math.nan) == "–"
