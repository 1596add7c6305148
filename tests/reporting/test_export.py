"""Records for other programs."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from record_factory import make_record, make_samples, make_stored

from robench.errors import UsageError
from robench.records import AttackSpec, Flag, ModelCard, Provenance
from robench.reporting.export import csv_bytes, model_info, samples_frame
from robench.reporting.model_results import collect
from robench.results import StoredRecord

CARD = ModelCard(
    name="toy",
    dataset="digits",
    num_classes=2,
    threat_model="Linf-0.2",
    defense="standard",
    architecture={"name": "digits_resnet"},
    weights={"path": "w", "sha256": "0" * 64},
    provenance=Provenance(
        paper="A Paper",
        authors="A and B",
        link="https://example.org",
        venue="ICML",
        year=2020,
        reported={"robust_acc": 55.5},
    ),
)


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


def test_model_info_speaks_robustbenchs_words():
    stored = make_stored("SSSBBC", attack="autoattack")
    (result,) = collect([stored])
    info = model_info(result, [stored.record.attack], CARD)
    assert info == {
        "link": "https://example.org",
        "name": "A Paper",
        "authors": "A and B",
        "additional_data": None,
        "number_forward_passes": 1,
        "dataset": "digits",
        "venue": "ICML 2020",
        "architecture": "digits-resnet",
        "eps": "0.2",
        "clean_acc": "83.33",
        "reported": "55.50",
        "autoattack_acc": "50.00",
        "external": None,
        "unreliable": False,
        "footnote": "n = 6, seed 0",
    }


def test_only_autoattacks_standard_version_counts_as_autoattack():
    stored = make_stored("SSSB", attack="autoattack")
    (result,) = collect([stored])
    other = AttackSpec(name="autoattack", attack="pgd", params={"steps": 1})
    assert model_info(result, [other])["autoattack_acc"] is None
    renamed = stored.record.attack.model_copy(update={"name": "another-name"})
    assert model_info(result, [other, renamed])["autoattack_acc"] == "75.00"


@pytest.mark.parametrize(("severity", "unreliable"), [("note", False), ("severe", True)])
def test_severe_flags_make_it_unreliable(severity, unreliable):
    flag = Flag(name="randomised", severity=severity, evidence="5 passes differ")
    stored = make_stored("SB", attack="autoattack", flags=[flag])
    (result,) = collect([stored])
    info = model_info(result, [stored.record.attack])
    assert info["unreliable"] is unreliable
    assert "5 passes differ" in info["footnote"]
    assert info["name"] is None


def test_errored_samples_make_it_unreliable():
    samples = make_samples("SE")
    (result,) = collect([StoredRecord.of(make_record(samples), samples)])
    assert model_info(result, [])["unreliable"] is True
