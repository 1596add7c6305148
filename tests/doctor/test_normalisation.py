"""Means and deviations in the units of their range, and in others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from robench.doctor.normalisation import normalisation
from robench.doctor.readings import readings
from robench.doctor.subject import Subject
from robench.models import wrap_module
from robench.records import InputSpec

FLAT = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
SUBJECT = Subject(
    wrap_module(FLAT, num_classes=2), torch.rand(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64)
)


def found(**given: Any) -> int:
    model = wrap_module(FLAT, num_classes=2, input=InputSpec(**given))
    return len(list(normalisation(replace(SUBJECT, model=model))))


def test_what_networks_are_trained_on_is_sound() -> None:
    for channels in (1, 3):
        for name, spec in readings(channels):
            assert not found(**spec.model_dump()), name


@pytest.mark.parametrize(
    "given",
    [
        {"mean": (0.5, 0.5, 0.5), "std": (1.0,)},
        {"mean": (0.0,), "std": (1 / 255,)},
        {"low": -1.0, "mean": (0.0,)},
        {"high": 255.0, "mean": (103.5, 116.3, 123.7), "std": (1.0,)},
        {"high": 255.0, "mean": (0.0,), "std": (255.0,)},
        {"low": -128.0, "high": 127.0, "mean": (0.0,)},
    ],
)
def test_other_units_are_sound_where_the_range_is_in_them(given: dict[str, Any]) -> None:
    assert not found(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"mean": (127.5,)},
        {"mean": (0.5, 0.5, 128.0)},
        {"mean": (-0.1,)},
        {"std": (58.4, 57.1, 57.4)},
        {"high": 255.0, "mean": (0.485, 0.456, 0.406)},
        {"high": 255.0, "std": (0.229, 0.224, 0.225)},
        {"low": -1.0, "mean": (123.0,)},
    ],
)
def test_other_units_than_the_ranges_are_found(given: dict[str, Any]) -> None:
    assert found(**given) == 1
