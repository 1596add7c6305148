"""Combinations for ``pytest.mark.parametrize``, most of them in the long run only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest


def one_at_a_time(*choices: Sequence[Any]) -> list[Any]:
    """All combinations; those that differ from the first in more than one choice are ``slow``.

    For choices that are made in places of their own: every value is quick with the others' first.
    """
    return [
        pytest.param(
            *(values[place] for values, place in zip(choices, places, strict=True)),
            marks=[pytest.mark.slow] if sum(map(bool, places)) > 1 else [],
        )
        for places in itertools.product(*(range(len(values)) for values in choices))
    ]
