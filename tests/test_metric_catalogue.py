from __future__ import annotations

import subprocess
import sys

import pytest

from robench.errors import UnknownNameError
from robench.metric_catalogue import METRICS, metric


def test_names_are_unique_and_entries_complete() -> None:
    for name, entry in METRICS.items():
        assert entry.name == name
        assert entry.label
        assert entry.meaning
        assert entry.low is None or entry.high is None or entry.low < entry.high
    assert len({entry.label for entry in METRICS.values()}) == len(METRICS)


def test_increase_may_go_either_way() -> None:
    increase = metric("attention_entropy_increase")
    assert (increase.low, increase.high, increase.direction) == (-1.0, 1.0, "lower")
    assert metric("attention_coverage_increase").direction == "higher"


def test_unknown_metric_lists_near_misses() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'attention_deviation'"):
        metric("attention_deviaton")


def test_reading_it_needs_no_torch() -> None:
    code = "import sys, robench.metric_catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
