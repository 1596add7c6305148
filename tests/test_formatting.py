from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from robench.formatting import fixed, is_undefined, number, p_value, plain, rounded


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


@pytest.mark.parametrize(
    "value, digits, text",
    [
        (76.95, 1, "77.0"),
        (100 * (1539 / 2000), 1, "77.0"),
        (1539 / 2000 * 100, 1, "77.0"),
        (76.9461, 1, "76.9"),
        (76.949, 1, "76.9"),
        (3.125, 2, "3.13"),
        (-3.125, 2, "-3.13"),
        (0.1 + 0.2, 1, "0.3"),
        (2.675, 2, "2.68"),
        (99.99999, 2, "100.00"),
        (1e300, 1, f"{10**300}.0"),
        (5e-324, 4, "0.0000"),
        (math.inf, 1, "inf"),
    ],
)
def test_one_rule_of_rounding(value: float, digits: int, text: str) -> None:
    assert fixed(value, digits) == text
    assert rounded(value, digits) == float(text)


@pytest.mark.parametrize("n", [7, 40, 200, 500, 1797, 2000, 9999])
def test_shares_are_rounded_as_their_fractions_are(n: int) -> None:
    for hits in range(0, n + 1, max(1, n // 97)):
        whole, rest = divmod(1000 * hits, n)
        exact = whole + (2 * rest >= n)
        for value in (100 * (hits / n), hits / n * 100, 100 * hits / n):
            assert number(value) == f"{exact // 10}.{exact % 10}"


def test_a_p_value_is_never_rounded_to_zero() -> None:
    assert p_value(0.0004) == "< 0.001"
    assert p_value(0.0314) == "0.031"
    assert p_value(math.nan) == "–"
