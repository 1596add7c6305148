from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robench.errors import UsageError
from robench.statistics import shares_above, wilson

sizes = st.one_of(st.just(float("inf")), st.floats(0, 3), st.sampled_from([0.0, 0.5, 1.0]))


def test_by_hand() -> None:
    thresholds, shares = shares_above([0.5, 0.0, np.inf, 0.5])
    assert thresholds.tolist() == [0.0, 0.5]
    assert [(share.low, share.estimate) for share in shares] == [
        (wilson(3, 4).low, 0.75),
        (wilson(1, 4).low, 0.25),
    ]


@settings(deadline=None)
@given(st.lists(sizes, min_size=1, max_size=30))
def test_it_counts_and_never_rises(values: list[float]) -> None:
    thresholds, shares = shares_above(values)
    assert thresholds[0] == 0
    for threshold, share in zip(thresholds, shares, strict=True):
        assert share.estimate == sum(value > threshold for value in values) / len(values)
    for name in ("low", "estimate", "high"):
        assert (np.diff([getattr(share, name) for share in shares]) <= 0).all()


def test_nothing_observed_is_undefined() -> None:
    ((share,)) = shares_above([])[1]
    assert not share.defined


@pytest.mark.parametrize("values", [[-0.1], [np.nan]])
def test_what_is_no_size_is_refused(values: list[float]) -> None:
    with pytest.raises(UsageError, match="at least 0"):
        shares_above(values)
