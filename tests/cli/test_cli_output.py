"""Tables, numbers and settings on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from record_factory import make_record, make_samples

from robench.cli.options import parse_name_values
from robench.cli.output import record_line, record_text
from robench.errors import UsageError
from robench.formatting import format_table, number, plain
from robench.records import AuditResult
from robench.results import Store


def test_columns_are_aligned_and_numbers_stand_right():
    table = format_table(
        ("name", "acc", ""), [("a", "9.5", "x"), ("long", "100.0", ""), ("b", "–", "")]
    )
    assert table == "name    acc\na       9.5  x\nlong  100.0\nb         –"


def test_a_table_without_rows_is_its_header():
    assert format_table(("name", "acc"), []) == "name  acc"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.25, "1.3"),
        (100, "100"),
        (math.nan, "–"),
        (None, "–"),
        (pd.NA, "–"),
        (np.float64(0.05), "0.1"),
        (np.int64(3), "3"),
        ("8/255", "8/255"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=30, deadline=None)
@given(_data)
def test_plain_data_is_always_json_and_loses_only_what_is_undefined(value):
    text = json.dumps(plain(value), allow_nan=False)
    assert json.loads(text) == plain(value)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_plain_keeps_numbers(values):
    assert plain(values) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr=0.1", 0.1),
        ("epochs=3", 3),
        ("flip=true", True),
        ("flip=False", False),
        ("milestones=0.5,0.75", [0.5, 0.75]),
        ("widths=[16, 32]", [16, 32]),
        ("schedule=cosine", "cosine"),
        ("name=a=b", "a=b"),
        ("name=", ""),
        ("teacher=None", None),
        ("mean=.5", 0.5),
        ("mean=-.5,5.,1e-3", [-0.5, 5.0, 1e-3]),
        ("lr=.5e-1", 0.05),
        ("pretrained=no", False),
        ("pretrained=off", False),
        ("pretrained=on", True),
        ("pretrained=yes", True),
        ('norm="no"', "no"),
        ("name=NaN", "NaN"),
        ("names=Infinity,-Infinity", ["Infinity", "-Infinity"]),
        ("version=1.2.3", "1.2.3"),
        ("id=007", "007"),
        ("at=.", "."),
        pytest.param(f"name={'[' * 3000}", "[" * 3000, id="deep"),
    ],
)
def test_settings_are_literals_or_text(text, value):
    parsed = parse_name_values([text], "--set")
    assert parsed == {text.partition("=")[0]: value}
    assert type(next(iter(parsed.values()))) is type(value)


@pytest.mark.parametrize("text", ["a,b", "2024", "1e3", "true", "no", "[1]", ".5", "null", ""])
def test_paths_and_names_of_data_stay_as_they_were_typed(text):
    for name in ("masks", "name", "samples", "config", "image", "label", "labels", "class_names"):
        assert parse_name_values([f"{name}={text}"], "--dataset-option") == {name: text}


@given(
    st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers() | st.booleans())
)
def test_settings_come_back_as_they_were_written(settings):
    texts = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    assert parse_name_values(texts, "--set") == settings


@pytest.mark.parametrize("texts", [["lr"], ["=1"], ["lr=1", "lr=2"]])
def test_malformed_settings_are_refused(texts):
    with pytest.raises(UsageError, match="--set"):
        parse_name_values(texts, "--set")


def test_a_record_reads_the_same_when_it_is_read_again(tmp_path: Path) -> None:
    samples = make_samples("SBCSE", classes=3, values={"b": [1.0] * 5, "a": [2.0] * 5})
    record = make_record(samples, classes=3)
    written = Store(tmp_path).write(record, samples).record
    read = Store(tmp_path).read(record.key).record
    assert record_text(written) == record_text(read)
    assert json.dumps(record_line(written)) == json.dumps(record_line(read))
    assert "1 clean_error, 1 broken, 2 survived, 1 errored" in record_text(written)


def test_a_record_says_how_far_its_audit_escalated() -> None:
    samples = make_samples("SBCSE", classes=3)
    audit = AuditResult(
        survivors=40,
        audited=12,
        hits=3,
        escalated=True,
        escalated_to="apgd-t",
        missed_share_upper=0.175,
    )
    assert (
        "12 of 40 survivors, 3 broken, so all were attacked up to apgd-t; "
        "at most 17.5 % of the survivors would have been by the stages after it (95 %)"
    ) in record_text(make_record(samples, classes=3, audit=audit))
