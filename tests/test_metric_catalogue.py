from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from robench import metric_catalogue
from robench.errors import UsageError
from robench.metric_catalogue import (
    METRICS,
    Metric,
    columns_shown,
    foreign_metrics,
    measure,
)
from robench.registry import Registry


def test_names_are_unique_and_entries_complete() -> None:
    for name, entry in METRICS.items():
        assert entry.name == name
        assert entry.label
        assert entry.meaning
        assert entry.low is None or entry.high is None or entry.low < entry.high
    assert len({entry.label for entry in METRICS.values()}) == len(METRICS)


def test_increase_may_go_either_way() -> None:
    increase = METRICS["attention_entropy_increase"]
    assert (increase.low, increase.high, increase.direction) == (-1.0, 1.0, "lower")
    assert METRICS["attention_coverage_increase"].direction == "higher"


def test_reading_it_needs_no_torch() -> None:
    code = "import sys, robench.metric_catalogue; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _metric(compute: Callable[..., Any], *on: str) -> Metric:
    return Metric(
        name="mass",
        unit="of the map",
        meaning="what the map sums to",
        direction="lower",
        bounds=(0.0, 2.0),
        compute=compute,
        on=on,
    )


def test_a_metric_of_one_map_makes_three_columns() -> None:
    item = _metric(lambda maps: maps.sum(dim=(1, 2)), "map")
    maps = {"maps": torch.ones(2, 2, 2) / 8, "adv_maps": torch.ones(2, 2, 2) / 4}
    values = item.values(maps)
    assert {name: column.tolist() for name, column in values.items()} == {
        "mass_clean": [0.5, 0.5],
        "mass_adv": [1.0, 1.0],
        "mass_increase": [0.5, 0.5],
    }
    columns = {column.name: column for column in item.columns()}
    assert list(columns) == list(values)
    assert (columns["mass_increase"].low, columns["mass_increase"].high) == (-2.0, 2.0)
    assert [c.direction for c in columns.values()] == ["neutral", "neutral", "lower"]
    assert item.needs == {"maps", "adv_maps"}
    assert columns["mass_adv"].label == "Mass (adversarial)"


@pytest.mark.parametrize("on", [(), ("maps", "features"), ("pixels",)])
def test_a_metric_is_on_maps_or_on_features(on: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="metric 'mass' is on"):
        _metric(lambda *_: None, *on)


@pytest.mark.parametrize(
    ("compute", "says"),
    [
        (lambda maps: 1 / 0, "metric 'mass' fails: ZeroDivisionError"),
        (lambda maps: maps, "does not return one value for each of 3"),
        (lambda maps: 3.0, "does not return one value for each of 3"),
    ],
)
def test_a_metric_that_fails_is_named(compute: Callable[..., Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        _metric(compute, "maps").values({"maps": torch.ones(3, 2, 2)})


def test_only_what_the_data_allow_is_measured() -> None:
    maps = torch.eye(4)[None]
    values = measure(maps=maps, adv_maps=maps, masks=None)
    assert "attention_coverage_clean" not in values
    assert "alignment" not in values
    assert [name for name in METRICS if name in values] == list(values)
    assert set(measure(features=maps[0], adv_features=maps[0])) == {"alignment"}
    assert measure(labels=torch.arange(3)) == {}


def test_what_is_shown_are_columns() -> None:
    for where in ("leaderboard", "by_class"):
        assert set(columns_shown(where)) < set(METRICS)  # type: ignore[arg-type]
    assert "attention_scatter_clean" not in columns_shown("leaderboard")
    assert "attention_coverage_clean" in columns_shown("leaderboard")


def test_no_metric_of_ours_is_foreign() -> None:
    assert foreign_metrics() == {}


@pytest.mark.parametrize("name", ["attention_scatter_adv", "label", "outcome"])
def test_a_column_cannot_be_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Registry[Metric] = Registry("metric")
    ours = metric_catalogue.METRIC_REGISTRY["attention_scatter"]
    registry.add(ours.name, ours)
    registry.add(name, replace(_metric(lambda maps: maps, "maps"), name=name), "of a stranger")
    monkeypatch.setattr(metric_catalogue, "METRIC_REGISTRY", registry)
    with pytest.raises(UsageError, match=f"metric '{name}' of a stranger has the column '{name}'"):
        len(metric_catalogue._Columns())
