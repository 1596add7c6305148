"""Any value of any option: the data set opens, or a RobenchError says what is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign import campaign
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from robench.cli.options import parse_name_values
from robench.datasets import from_torch, load_dataset
from robench.errors import DataError, RobenchError, UsageError

OPTIONS = [
    *("size", "resize", "crop", "interpolation", "grey", "white", "upright", "pad"),
    *("masks", "class_names", "num_classes", "name"),
]

plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(width=16),
    st.text(max_size=8),
    st.sampled_from(["a", "b", "a,b", "no", "off", "yes", ".5", "bicubic", "0", "[", '["a","b"]']),
)
values = plain | st.lists(plain, max_size=3)
typed = st.text(max_size=12) | plain.map(str) | plain.map(json.dumps)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("options") / "d"
    for name in "ab":
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 3), (255, 51, 0)).save(root / name / "0.png")
    return root


def check(folder: Path, options: dict[str, Any]) -> None:
    try:
        dataset = load_dataset(folder, **options)
        pixels = dataset.batch(range(len(dataset)))
    except RobenchError:
        return
    assert len(dataset) == 2
    assert set(dataset.class_names) >= {"a", "b"}
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def check_typed(texts: list[str]) -> None:
    found = {}
    for name, text in zip("pqrs", texts, strict=False):
        found |= parse_name_values([f"{name}={text}"], "--set")
    for value in found.values():
        for part in value if isinstance(value, list) else [value]:
            assert not (isinstance(part, float) and math.isnan(part)), "NaN is no number to type"


@pytest.mark.parametrize(
    "options",
    [{"crop": 10**6, "pad": True}, {"size": 10**7}, {"size": [3, 10**7]}, {"resize": 10**9},
     {"num_classes": 10**9}, {"num_classes": 0}],
)  # fmt: skip
def test_what_no_memory_holds_is_refused_before_it_is_made(
    folder: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        load_dataset(folder, **options)
    if "num_classes" in options:
        with pytest.raises(UsageError, match="num_classes"):
            from_torch((torch.rand(2, 1, 4, 4), [0, 1]), **options)


def test_an_image_that_is_smaller_than_its_crop(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"a/0\.png: crop=6 is larger than the image, 4 x 3.*pad=true"
    ):
        load_dataset(folder, crop=6)
    with pytest.raises(DataError, match="crop=4 is larger"):
        load_dataset(folder, crop=4)
    padded = load_dataset(folder, crop=6, pad=True, grey=True).batch([0])[0, 0]
    assert (padded > 0).sum() == 12
    assert (padded[1:4, 1:5] > 0).all() or (padded[2:5, 1:5] > 0).all()
    assert load_dataset(folder, crop=3).input_shape == (3, 3, 3)
    assert load_dataset(folder, resize=6, crop=6).input_shape == (3, 6, 6)


@settings(max_examples=20, deadline=None)
@given(options=st.dictionaries(st.sampled_from(OPTIONS), values, max_size=3))
def test_any_value_from_python(folder: Path, options: dict[str, Any]) -> None:
    check(folder, options)


@settings(max_examples=20, deadline=None)
@given(st.lists(typed, max_size=4))
def test_any_value_that_is_typed(texts: list[str]) -> None:
    check_typed(texts)


@campaign(options=st.dictionaries(st.sampled_from(OPTIONS), values, max_size=3))
def test_ten_thousand_values_from_python(folder: Path, options: dict[str, Any]) -> None:
    check(folder, options)


@campaign(texts=st.lists(typed, max_size=4))
def test_ten_thousand_values_that_are_typed(texts: list[str]) -> None:
    check_typed(texts)
