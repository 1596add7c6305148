"""Labels in every form that users have, by every way in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_hub_data import Rows, Value
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from robench.datasets import from_torch, load_dataset
from robench.datasets.hugging_face import HuggingFaceDataset
from robench.datasets.labels import class_labels, in_order, listed_names
from robench.errors import DataError, UsageError

INPUTS = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = [2, 0, 1, 2]

FORMS: dict[str, Any] = {
    "list": LABELS,
    "tuple": tuple(LABELS),
    **{f"numpy {t}": np.array(LABELS, t) for t in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")},
    "big-endian": np.array(LABELS, ">i4"),
    **{
        f"torch {t}": torch.tensor(LABELS).to(getattr(torch, t))
        for t in ("uint8", "uint16", "uint32", "int8", "int16", "int32", "int64")
    },
    "column": torch.tensor(LABELS)[:, None],
    "one-hot": F.one_hot(torch.tensor(LABELS)),
    "one-hot floats": F.one_hot(torch.tensor(LABELS)).float().numpy(),
    "one-hot bool": F.one_hot(torch.tensor(LABELS)).bool(),
}


@pytest.mark.parametrize("labels", FORMS.values(), ids=FORMS)
def test_every_form_by_every_way(tmp_path: Path, labels: Any) -> None:
    np.savez(tmp_path / "d.npz", inputs=INPUTS.numpy(), labels=np.asarray(labels))
    tensor = torch.from_numpy(np.asarray(labels).astype(np.asarray(labels).dtype.newbyteorder("=")))
    items = list(zip(INPUTS, labels, strict=True))
    columns = {"image": list(INPUTS.numpy()), "label": list(labels)}
    ways = {
        "pair": from_torch((INPUTS, labels)),
        "list": from_torch([INPUTS.numpy(), labels]),
        "dictionary": from_torch({"images": INPUTS, "targets": labels}),
        "file": load_dataset(tmp_path / "d.npz"),
        "items": from_torch(items),
        "data set": from_torch(TensorDataset(INPUTS, tensor)),
        "loader": from_torch(DataLoader(TensorDataset(INPUTS, tensor), 3)),
        "batch": from_torch(next(iter(DataLoader(TensorDataset(INPUTS, tensor), 4)))),
        "rows": from_torch(Rows(columns, {"image": Value(), "label": Value()})),
        "hub": HuggingFaceDataset(
            Rows(columns, {"image": Value(), "label": Value()}), name="x", split="test"
        ),
    }
    for way, dataset in ways.items():
        assert dataset.labels.tolist() == LABELS, way
        assert dataset.labels.dtype == torch.int64
        assert dataset.num_classes == 3, way
        assert torch.equal(dataset.batch(range(4)), INPUTS), way


def test_bool_is_two_classes_and_texts_are_names() -> None:
    assert from_torch((INPUTS, torch.tensor([True, False, True, True]))).labels.tolist() == [
        1,
        0,
        1,
        1,
    ]
    named = from_torch((INPUTS, ["dog", "ant", "cat", "dog"]))
    assert (named.labels.tolist(), named.class_names) == (LABELS, ("ant", "cat", "dog"))
    given_ = from_torch((INPUTS, np.array(["b", "a", "b", "b"])), class_names=["b", "a"])
    assert given_.labels.tolist() == [0, 1, 0, 0]
    numbers = from_torch((INPUTS, ["10", "9", "9", "10"]))
    assert numbers.class_names == ("9", "10")
    with pytest.raises(DataError, match="no class is called 'z'"):
        from_torch((INPUTS, ["a", "z", "a", "b"]), class_names=["a", "b"])


def test_one_hot_says_how_many_classes_there_are() -> None:
    assert from_torch((INPUTS, F.one_hot(torch.tensor(LABELS), 7))).num_classes == 7


@pytest.mark.parametrize(
    "labels, words",
    [
        (torch.zeros(4), "labels are torch.float32, no class numbers"),
        (np.array([0.0, 1, 2, 1]), "labels are float64"),
        (torch.zeros(4, dtype=torch.bfloat16), "labels are torch.bfloat16"),
        (torch.full((4, 3), 1 / 3), "not one-hot"),
        (torch.tensor([[1, 1, 0]] * 4), "not one-hot"),
        (torch.tensor([[0, 0, 0]] * 4), "not one-hot"),
        (torch.tensor([[0, 2, 0]] * 4), "not one-hot"),
        (torch.zeros(4, 2, 2).long(), "labels of shape"),
        ([0, 1, -1, 0], "label -1"),
        (np.array([0, 1, 2**63 + 1, 0], np.uint64), "a label is 9223372036854775809"),
        ([0, 1, 10**12, 0], "the largest label is 1000000000000"),
        ([0, 1, None, 0], "not known"),
        ([[0], [1, 2], [0], [0]], "no class numbers"),
        ([0, 1], "4 samples but labels of shape"),
    ],
)
def test_what_is_no_label(labels: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        from_torch((INPUTS, labels))


def test_a_label_outside_the_classes_is_named() -> None:
    with pytest.raises(DataError, match=r"label 2 of sample 'arrays/000000' is outside 0\.\.1"):
        from_torch((INPUTS, LABELS), num_classes=2)


@given(st.lists(st.integers(0, 300), min_size=1, max_size=30))
def test_indices_come_back(labels: list[int]) -> None:
    found, names = class_labels(labels, where="x")
    assert found.tolist() == labels
    assert len(names) == max(labels) + 1


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1))
def test_names_that_are_numbers_are_ordered_by_value(values: list[int]) -> None:
    assert in_order(map(str, values)) == [str(v) for v in sorted(values)]


@given(st.lists(st.text(min_size=1), unique=True, min_size=1))
def test_other_names_are_ordered_by_code_point(names: list[str]) -> None:
    assert in_order([*names, "x y"]) == sorted([*names, "x y"])


def test_lists_of_names() -> None:
    assert listed_names("0,1, 2") == ["0", "1", "2"]
    assert listed_names('["a,b", "c"]') == ["a,b", "c"]
    assert listed_names([0, 1]) == ["0", "1"]
    for wrong in ("a,b,a", "[1,"):
        with pytest.raises(UsageError):
            listed_names(wrong)
